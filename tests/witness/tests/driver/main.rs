//! The witness as programs call it: its functions by their C names, kernels in hand-written PTX.

mod behaviour;
mod calls;
mod graphs;
mod nccl;
mod planted;
mod streams;

use calls::*;
use gems_witness::driver::{messages, restart, settings::Settings};
use gems_witness::machine::Options;
use std::sync::{Mutex, MutexGuard};

/// One test at a time: there is one driver in a process.
static TURN: Mutex<()> = Mutex::new(());

/// A fresh device with a context that is current here, a stream, and the two kernels.
struct Bench {
    stream: usize,
    fill: usize,
    copy: usize,
    _turn: MutexGuard<'static, ()>,
}

const KERNELS: &str = concat!(include_str!("kernels.ptx"), "\0");

impl Bench {
    fn new(settings: Settings) -> Self {
        let turn = TURN.lock().unwrap_or_else(|p| p.into_inner());
        restart(settings);
        done(init());
        set_current(retain());
        let module = load(KERNELS).unwrap();
        let function = |name| function(module, name).unwrap();
        Self { stream: stream(), fill: function("fill\0"), copy: function("copy\0"), _turn: turn }
    }

    fn plain() -> Self {
        Self::new(Settings::default())
    }

    /// `to[i] = value` for `count` numbers.
    fn fill(&self, stream: usize, to: u64, value: u32, count: u32) -> u32 {
        launch(
            self.fill,
            [count.div_ceil(64), 1, 1],
            [64, 1, 1],
            0,
            stream,
            &fill_arguments(to, value, count),
        )
    }

    fn copy(&self, stream: usize, to: u64, from: u64, count: u32) -> u32 {
        let arguments = [to, from, u64::from(count)];
        launch(self.copy, [count.div_ceil(64), 1, 1], [64, 1, 1], 0, stream, &arguments)
    }
}

/// A device whose orders come from a seed.
fn seeded(seed: u64) -> Settings {
    Settings { machine: Options { seed, ..Options::default() }, ..Settings::default() }
}

/// The structure that `fill` takes.
fn fill_arguments(to: u64, value: u32, count: u32) -> [u64; 2] {
    [to, u64::from(value) | u64::from(count) << 32]
}

/// A call that has to work.
#[track_caller]
fn done(status: u32) {
    assert_eq!(status, SUCCESS, "{:?}", messages());
}

/// A call that has to fail with a code, and what was said, which has to have all these words.
#[track_caller]
fn refused(status: u32, code: u32, words: &[&str]) {
    assert_eq!(status, code, "{:?}", messages());
    said(words);
}

/// One message has all these words.
#[track_caller]
fn said(words: &[&str]) {
    let messages = messages();
    let found = messages.iter().any(|m| words.iter().all(|w| m.contains(w)));
    assert!(found, "{words:?} in no message of {messages:#?}");
}

/// Nothing was said.
#[track_caller]
fn silent() {
    assert_eq!(messages(), Vec::<String>::new());
}
