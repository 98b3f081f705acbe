//! `gems-engine serve`.
//!
//! | file | what |
//! | --- | --- |
//! | `desk` | where requests wait for the model, which answers those that wait together |
//! | `site` | what is answered to which request |
//! | `connections` | the sockets: limits, time, and the end |
//! | `counters` | what is counted, for Prometheus |
//! | `page/` | the page to try the model on |

mod connections;
mod counters;
mod desk;
mod site;

use super::ask::{Asker, Rules};
use super::options::{DeviceArgs, OutputArgs, SettingsArgs};
use super::session::Session;
use crate::data::lines_of;
use crate::error::{Error, Kind, Result};
use crate::run::Reads;
use clap::Args;
use connections::Limits;
use desk::Desk;
use serde_json::json;
use site::Site;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Answer requests over HTTP: POST /rank for programs, and a page to try the model on.
///
/// There is neither encryption nor a password: it listens to this machine only, unless told otherwise; put a proxy that
/// has both between it and a network.
///
/// Example: gems-engine serve --run runs/first, then open http://127.0.0.1:8080
#[derive(Args)]
pub struct ServeArgs {
    /// The run directory.
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// Where to listen; port 0 is any that is free.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// How many items are answered, where a request says nothing else.
    #[arg(long, value_name = "N", default_value = "10")]
    top: NonZeroUsize,
    /// Rank these items only: a file of ids, one a line.
    #[arg(long, value_name = "FILE")]
    among: Option<PathBuf>,
    /// Do not answer items of the history.
    #[arg(long)]
    exclude_history: bool,
    /// Requests that may wait for the model; more are refused with 503.
    #[arg(long, value_name = "N", default_value = "256")]
    queue: NonZeroUsize,
    /// Seconds after which a request that waits is given up with 504.
    #[arg(long, value_name = "SECONDS", default_value = "30")]
    timeout: NonZeroU64,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs the command.
pub fn run(args: &ServeArgs) -> Result<()> {
    // Before the model is loaded: a port in use should be known at once.
    let listener = TcpListener::bind(args.listen).map_err(|e| cannot_listen(args.listen, &e))?;
    let address = listener.local_addr().map_err(|e| cannot_listen(args.listen, &e))?;
    let rules = Rules {
        top: args.top,
        among: args.among.as_deref().map(lines_of).transpose()?,
        exclude_history: args.exclude_history,
    };
    let mut session = Session::open_run(&args.run, &args.settings, &args.device, Reads::Items)?;
    session.restore_best(&args.run)?;
    let asker = Asker::new(&session, rules)?;
    let (desk, work) = Desk::open(args.queue.get());
    let timeout = Duration::from_secs(args.timeout.get());
    let site = Arc::new(Site::new(&session, &args.run, desk, timeout, address));
    tell(args, address, &session)?;
    let (stopping, stop) = tokio::sync::oneshot::channel();
    let limits = Limits::default();
    let network = std::thread::spawn(move || connections::run(listener, site, limits, stop));
    // The model stays on this thread until nobody can ask any more.
    let worked = work.until_closed(&asker);
    drop(stopping);
    let served = network.join().map_err(|_| Error::new(Kind::Io, "the server's thread ended by itself"))?;
    worked.and(served)
}

fn cannot_listen(address: SocketAddr, e: &std::io::Error) -> Error {
    let (what, remedy) = match e.kind() {
        std::io::ErrorKind::AddrInUse => {
            ("another program listens there".to_string(), "stop it, or choose another --listen ADDRESS:PORT")
        }
        std::io::ErrorKind::PermissionDenied => {
            ("this port is not for everybody".to_string(), "choose a port above 1023")
        }
        std::io::ErrorKind::AddrNotAvailable => (
            "this machine has no such address".to_string(),
            "127.0.0.1 is this machine, 0.0.0.0 all networks",
        ),
        _ => (e.to_string(), "choose another --listen ADDRESS:PORT"),
    };
    Error::usage(what).at(format!("--listen {address}")).remedy(remedy)
}

fn tell(args: &ServeArgs, address: SocketAddr, session: &Session) -> Result<()> {
    if !address.ip().is_loopback() {
        super::say(&format!(
            "warning: {address} is open to the network, without encryption and without a password"
        ));
    }
    let (url, items) = (format!("http://{address}"), session.data.items.len());
    let mut out = std::io::stdout();
    let told = match args.output.json {
        true => writeln!(out, "{}", json!({"listening": url, "items": items, "tasks": session.data.tasks})),
        false => writeln!(out, "{url} ranks {items} items; Ctrl-C stops it"),
    };
    told.and_then(|()| out.flush()).map_err(|e| Error::io("write", "standard output", e))
}
