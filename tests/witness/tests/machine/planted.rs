//! Bugs planted in the compiler's PTX of the project's kernels: each is found, and named with kernel, block, thread, PTX line and
//! source line, or shows in the numbers.

use super::cases::{Branch, Case, Found, hopper, hopper_linear, linear_tc, matmul, weight_grad};
use super::kernels::manners;
use super::rig::ptx;
use gems_witness::fault::Kind;
use gems_witness::machine::Options;

type Lines = Vec<String>;

/// The line of the `nth` one (from 0) that contains some text.
fn line(lines: &Lines, text: &str, nth: usize) -> usize {
    let mut found = lines.iter().enumerate().filter(|l| l.1.contains(text));
    found.nth(nth).unwrap_or_else(|| panic!("no `{text}`")).0
}

/// Removes that line.
fn remove(text: &'static str, nth: usize) -> impl Fn(&mut Lines) {
    move |lines| {
        let at = line(lines, text, nth);
        lines[at].clear();
    }
}

/// In that line, replaces one thing by another.
fn replace(text: &'static str, nth: usize, from: &'static str, to: &'static str) -> impl Fn(&mut Lines) {
    move |lines| {
        let at = line(lines, text, nth);
        assert!(lines[at].contains(from), "no `{from}` in {}", lines[at]);
        lines[at] = lines[at].replacen(from, to, 1);
    }
}

/// Removes the first line with `text` behind one with `anchor`.
fn remove_after(anchor: &'static str, text: &'static str) -> impl Fn(&mut Lines) {
    move |lines| {
        let from = line(lines, anchor, 0);
        let at = (from..lines.len())
            .find(|l| lines[*l].contains(text))
            .unwrap_or_else(|| panic!("no `{text}` behind `{anchor}`"));
        lines[at].clear();
    }
}

/// Removes the last line with `text` before the first one with `anchor`.
fn remove_before(anchor: &'static str, text: &'static str) -> impl Fn(&mut Lines) {
    move |lines| {
        let to = line(lines, anchor, 0);
        let at = (0..to)
            .rev()
            .find(|l| lines[*l].contains(text))
            .unwrap_or_else(|| panic!("no `{text}` before `{anchor}`"));
        lines[at].clear();
    }
}

/// Removes the last wait for an mbarrier before the first line with `anchor`.
fn remove_wait_before(anchor: &'static str) -> impl Fn(&mut Lines) {
    move |lines| {
        remove_before(anchor, "mbarrier.try_wait")(lines);
        remove_before(anchor, "@!done bra again")(lines);
    }
}

/// Replaces one thing by another wherever it stands.
fn replace_all(from: &'static str, to: &'static str) -> impl Fn(&mut Lines) {
    move |lines| {
        assert!(lines.iter().any(|l| l.contains(from)), "no `{from}`");
        lines.iter_mut().for_each(|l| *l = l.replace(from, to));
    }
}

/// Rewrites that line, given its words.
fn rewrite(text: &'static str, nth: usize, with: impl Fn(&[&str]) -> String) -> impl Fn(&mut Lines) {
    move |lines| {
        let at = line(lines, text, nth);
        let words: Vec<&str> = lines[at]
            .split(|c: char| c.is_whitespace() || ",;{}[]".contains(c))
            .filter(|w| !w.is_empty())
            .collect();
        lines[at] = with(&words);
    }
}

struct Bug {
    what: &'static str,
    edit: Box<dyn Fn(&mut Lines)>,
    kinds: &'static [Kind],
    /// Wrong numbers will do.
    numbers: bool,
}

fn bug(what: &'static str, kinds: &'static [Kind], edit: impl Fn(&mut Lines) + 'static) -> Bug {
    Bug { what, edit: Box::new(edit), kinds, numbers: false }
}

fn wrong(what: &'static str, kinds: &'static [Kind], edit: impl Fn(&mut Lines) + 'static) -> Bug {
    Bug { what, edit: Box::new(edit), kinds, numbers: true }
}

fn plant(text: &str, kernel: &str, bug: &Bug) -> String {
    let start = text.find(&format!(".entry {kernel}(")).unwrap_or_else(|| panic!("no {kernel}"));
    let end = text[start + 1..].find(".entry ").map_or(text.len(), |e| start + 1 + e);
    let mut lines: Lines = text[start..end].lines().map(String::from).collect();
    (bug.edit)(&mut lines);
    format!("{}{}\n{}", &text[..start], lines.join("\n"), &text[end..])
}

#[track_caller]
fn find(case: impl Fn() -> Case, bugs: &[Bug]) {
    let first = case();
    let Some(text) = ptx(first.file, first.arch) else { return };
    let kernel = first.steps[0].kernel.clone();
    for b in bugs {
        let programs =
            first.programs(&plant(&text, &kernel, b)).unwrap_or_else(|e| panic!("{}: {e}", b.what));
        let found = manners()
            .into_iter()
            .find_map(|o| case().run(&programs, &Options { limit: 5_000_000, ..o }).err());
        match found {
            None => panic!("{kernel}: {}: not found", b.what),
            Some(Found::Wrong(message)) => {
                assert!(b.numbers, "{}: only in the numbers: {message}", b.what);
                eprintln!("found: {}: {message}", b.what);
            }
            Some(Found::Fault(fault)) => {
                assert!(b.kinds.contains(&fault.kind), "{}: {fault}", b.what);
                let named = fault.kernel == kernel
                    && fault.block.is_some()
                    && fault.place.contains("PTX line")
                    && fault.place.contains(".cu");
                assert!(
                    named && (fault.thread.is_some() || fault.kind == Kind::Deadlock),
                    "{}: {fault}",
                    b.what
                );
                eprintln!("found: {}: {fault}", b.what);
            }
        }
    }
}

const RACE: &[Kind] = &[Kind::Race];

#[test]
fn in_products_on_tensor_cores() {
    let bugs = [
        bug("a block barrier removed", RACE, remove("bar.sync", 1)),
        bug("a wait for copies one group too late", RACE, replace("cp.async.wait_group 1", 0, "1;", "2;")),
        bug("no wait for copies", RACE, remove("cp.async.wait_group 1", 0)),
        wrong("16 bytes copied whatever is valid", &[Kind::Bounds, Kind::Unwritten], |lines: &mut Lines| {
            for l in lines.iter_mut().filter(|l| l.contains("cp.async.cg")) {
                *l = format!("{} 16, 16;", &l[..l.find(" 16,").expect("16 bytes")]);
            }
        }),
        bug(
            "a copy from 8 bytes further",
            &[Kind::Misaligned],
            rewrite("cp.async.cg", 0, |w| {
                format!("cp.async.cg.shared.global [{}], [{}+8], 16, {};", w[1], w[2], w[4])
            }),
        ),
        bug(
            "a copy to shared memory 8 bytes further",
            &[Kind::Misaligned],
            rewrite("cp.async.cg", 0, |w| {
                format!(
                    "add.s32 {0}, {0}, 8; cp.async.cg.shared.global [{0}], [{1}], 16, {2};",
                    w[1], w[2], w[4]
                )
            }),
        ),
        wrong(
            "two registers of A exchanged in an asm string",
            &[],
            rewrite("mma.sync", 0, |w| {
                let d = format!("{{{},{},{},{}}}", w[1], w[2], w[3], w[4]);
                format!("{} {d}, {{{},{},{},{}}}, {{{},{}}}, {d};", w[0], w[5], w[7], w[6], w[8], w[9], w[10])
            }),
        ),
        wrong(
            "the registers of B exchanged in an asm string",
            &[],
            rewrite("mma.sync", 3, |w| {
                let d = format!("{{{},{},{},{}}}", w[1], w[2], w[3], w[4]);
                format!("{} {d}, {{{},{},{},{}}}, {{{},{}}}, {d};", w[0], w[5], w[6], w[7], w[8], w[10], w[9])
            }),
        ),
        wrong("an ldmatrix transposed", &[], replace("ldmatrix", 0, ".x4.", ".x4.trans.")),
        wrong(
            "a store one value further",
            &[Kind::Bounds, Kind::Race],
            replace("st.global.v4.f32", 1, "+16]", "+32]"),
        ),
        bug(
            "an .aligned instruction in a branch that lanes part in",
            &[Kind::Divergence],
            rewrite("ldmatrix", 0, |w| {
                let (list, at) = (w[1..5].join(","), w[5]);
                format!(
                    "{{ .reg .pred odd; .reg .b32 id; mov.u32 id, %tid.x; and.b32 id, id, 1; setp.eq.s32 odd, id, 1; @odd bra skip; {} {{{list}}}, [{at}]; skip: }}",
                    w[0]
                )
            }),
        ),
    ];
    find(|| matmul("matmul_tc_nt_f32", (136, 72, 136), false, true, true), &bugs);
}

#[test]
fn in_adapted_linears_between_blocks() {
    let bugs = [
        bug(
            "the wait for another block removed",
            &[Kind::Race, Kind::Unwritten],
            remove_after("ld.volatile.global.u32", "bra"),
        ),
        bug("no __threadfence before the flag", RACE, remove("membar.gl", 1)),
        bug("no __threadfence behind the flag", RACE, remove("membar.gl", 0)),
        bug("a __threadfence of the block only", RACE, replace("membar.gl", 1, "membar.gl", "membar.cta")),
        bug("the barrier before the flag removed", &[Kind::Race, Kind::Unwritten], |lines: &mut Lines| {
            let fence = line(lines, "membar.gl", 1);
            let barriers = lines.iter_mut().skip(fence).filter(|l| l.contains("bar.sync"));
            barriers.take(1).for_each(String::clear);
        }),
        bug(
            "the flag reset by a weak store",
            RACE,
            replace("st.volatile.global.u32", 0, "st.volatile", "st"),
        ),
        wrong("a flag that is not reset", &[], remove("st.volatile.global.u32", 0)),
        wrong(
            "a counter of readers that is not reset",
            &[],
            remove_after("st.volatile.global.u32", "st.global.u32"),
        ),
        bug(
            "blocks that wait in the order of blockIdx",
            &[Kind::Deadlock],
            rewrite("atom.global.add.u32", 0, |w| format!("mov.u32 {}, %ctaid.x;", w[1])),
        ),
        bug(
            "a relaxed look at the flag by a weak load",
            RACE,
            replace("ld.volatile.global.u32", 0, "ld.volatile", "ld"),
        ),
    ];
    // So many rows of tiles that hardly any order of blocks is one in which nobody waits in vain.
    find(|| linear_tc((520, 136, 72), 24, true), &bugs);
}

#[test]
fn in_weight_gradients_between_blocks() {
    let bugs = [
        bug("no __threadfence before the ticket", RACE, remove("membar.gl", 0)),
        bug("no __threadfence behind the ticket", RACE, remove("membar.gl", 1)),
        bug(
            "no barrier before the ticket",
            &[Kind::Race, Kind::Unwritten],
            remove_after("membar.gl", "bar.sync"),
        ),
        wrong("a ticket that is not reset", &[], remove_after("atom.global.add.u32", "st.global.u32")),
        bug(
            "a flag in shared memory without its barrier",
            RACE,
            remove_after("st.shared.u32 \t[shared]", "bar.sync"),
        ),
    ];
    find(|| weight_grad((300, 264, 72), 3), &bugs);
}

#[test]
fn in_hopper_linears_between_blocks() {
    let bugs = [
        bug(
            "no proxy fence behind the flag",
            &[Kind::ProxyFence],
            remove_after("ld.acquire.gpu", "fence.proxy.async"),
        ),
        bug("a proxy fence of shared memory only", &[Kind::ProxyFence], |lines: &mut Lines| {
            let from = line(lines, "ld.acquire.gpu", 0);
            let at = (from..lines.len()).find(|l| lines[*l].contains("fence.proxy.async")).expect("a fence");
            lines[at] = "fence.proxy.async.shared::cta;".into();
        }),
        bug(
            "a relaxed look at the flag",
            &[Kind::Race, Kind::ProxyFence],
            replace("ld.acquire.gpu", 0, "acquire", "relaxed"),
        ),
        bug("a relaxed flag", RACE, replace("red.release.gpu", 0, "release", "relaxed")),
        bug("a flag for the block only", RACE, replace("red.release.gpu", 0, "gpu", "cta")),
        bug(
            "the wait for the branch removed",
            &[Kind::Race, Kind::Unwritten],
            remove_after("ld.acquire.gpu", "bra"),
        ),
        bug(
            "the flag reset by a weak store",
            RACE,
            replace("st.volatile.global.u32", 0, "st.volatile", "st"),
        ),
        bug("no __syncwarp before the flag", RACE, |lines: &mut Lines| {
            (0..2).for_each(|_| {
                let at =
                    (0..lines.len()).rev().find(|l| lines[*l].contains("bar.warp.sync")).expect("a barrier");
                if at > line(lines, "wgmma.fence", 0) {
                    lines[at].clear();
                }
            });
        }),
    ];
    find(|| hopper_linear((200, 136, 72), &Branch { rank: 24, transposed: true }, 128), &bugs);
    find(|| hopper_linear((136, 264, 72), &Branch { rank: 72, transposed: true }, 256), &bugs);
}

#[test]
fn in_mbarriers() {
    let anything: &[Kind] = &[
        Kind::Race,
        Kind::Unwritten,
        Kind::Deadlock,
        Kind::Mbarrier,
        Kind::Unfinished,
        Kind::Bounds,
        Kind::Limit,
    ];
    let bugs = [
        bug(
            "an mbarrier that expects too many bytes",
            &[Kind::Deadlock],
            rewrite("mbarrier.arrive.expect_tx", 0, |w| {
                format!("{{ .reg .b32 more; add.s32 more, {}, 128; {} _, [{}], more; }}", w[3], w[0], w[2])
            }),
        ),
        bug(
            "an mbarrier that expects too few bytes",
            &[Kind::Race, Kind::Deadlock, Kind::Mbarrier, Kind::Unwritten],
            rewrite("mbarrier.arrive.expect_tx", 0, |w| {
                format!("{{ .reg .b32 less; add.s32 less, {}, -8192; {} _, [{}], less; }}", w[3], w[0], w[2])
            }),
        ),
        bug(
            "an arrival twice",
            anything,
            rewrite("mbarrier.arrive.shared", 2, |w| format!("{0} _, [{1}]; {0} _, [{1}];", w[0], w[2])),
        ),
        bug(
            "a whole warp that does what one elected thread is to do",
            anything,
            rewrite("elect.sync", 0, |_| "setp.ne.s32 one, 0, 1;".into()),
        ),
        bug("an arrival left out", &[Kind::Deadlock], remove("mbarrier.arrive.shared", 2)),
        bug(
            "a wait for copies that does not wait",
            anything,
            remove_before("wgmma.fence", "@!done bra again"),
        ),
        bug("a wait for a free stage that does not wait", anything, remove("@!done bra again", 1)),
    ];
    find(|| hopper((200, 136, 584), false, true, true, 128), &bugs);
    find(|| hopper((136, 264, 584), false, true, true, 256), &bugs);
}

#[test]
fn in_hopper_products() {
    let anything: &[Kind] = &[
        Kind::Race,
        Kind::Unwritten,
        Kind::Deadlock,
        Kind::Mbarrier,
        Kind::Unfinished,
        Kind::Bounds,
        Kind::Limit,
    ];
    let bugs = [
        bug("products waited for one group too late", RACE, |lines: &mut Lines| {
            for l in lines.iter_mut().filter(|l| l.contains("wgmma.wait_group.sync.aligned 1")) {
                *l = "wgmma.wait_group.sync.aligned 2;".into();
            }
        }),
        bug("no wgmma.fence before the products", &[Kind::Unfinished], |lines: &mut Lines| {
            lines.iter_mut().filter(|l| l.contains("wgmma.fence")).for_each(String::clear);
        }),
        bug(
            "no wait for the last products",
            &[Kind::Unfinished],
            remove("wgmma.wait_group.sync.aligned 0", 0),
        ),
        wrong(
            "a wrong field in a matrix descriptor",
            anything,
            replace_all("4611686293305294848", "4611686430744248320"),
        ),
        bug(
            "a descriptor without its swizzle",
            &[Kind::Descriptor],
            replace_all("4611686293305294848", "274877906944"),
        ),
        wrong(
            "coordinates of a bulk copy exchanged",
            anything,
            rewrite("cp.async.bulk", 0, |w| {
                format!("{} [{}], [{}, {{{}, {}}}], [{}];", w[0], w[1], w[2], w[4], w[3], w[5])
            }),
        ),
        wrong(
            "an operand said to be transposed",
            anything,
            replace("1, 1, 1, 0, ", 0, "1, 1, 1, 0, ", "1, 1, 1, 1, "),
        ),
        bug(
            "no fence behind the initialisation of mbarriers",
            &[Kind::ProxyFence],
            remove("fence.mbarrier_init", 0),
        ),
        bug(
            "no barrier behind the initialisation of mbarriers",
            &[Kind::Race, Kind::Mbarrier],
            remove("bar.sync", 0),
        ),
    ];
    find(|| hopper((200, 136, 584), false, true, true, 128), &bugs);
    find(|| hopper((136, 264, 584), false, true, true, 256), &bugs);
}

/// Tiles on their way out by way of shared memory, of two warpgroups that take tiles in turn and of two that share them.
#[test]
fn in_tiles_on_their_way_out() {
    let early: &[Kind] = &[Kind::Race, Kind::Unwritten];
    let bugs = [
        bug("a buffer that is filled before it is ready", early, remove_wait_before("st.shared.u32")),
        bug("a buffer that is copied before it is filled", early, remove_wait_before("ld.shared.v4.u32")),
        bug(
            "no __syncwarp before it is said to be filled",
            early,
            remove_after("st.shared.u32", "bar.warp.sync"),
        ),
        bug("a buffer that nobody says is ready", &[Kind::Deadlock], remove("mbarrier.arrive.shared", 0)),
    ];
    find(|| hopper((200, 328, 584), false, true, false, 128), &bugs);
    find(|| hopper((136, 264, 584), false, true, false, 256), &bugs);
}
