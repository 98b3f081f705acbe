//! Sockets: how many, how long, and how it all ends.

use super::site::Site;
use crate::error::{Error, Kind, Result};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};

/// What a connection may take.
pub struct Limits {
    /// Connections at a time; later ones wait to be accepted.
    connections: usize,
    /// For the head of a request.
    head: Duration,
    /// For requests on their way when the server is stopped.
    grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { connections: 1024, head: seconds(10), grace: seconds(10) }
    }
}

/// Serves `site` until a signal asks to stop, or the other end of `stop` is dropped.
///
/// # Errors
/// What the system refuses.
pub fn run(
    listener: TcpListener,
    site: Arc<Site>,
    limits: Limits,
    stop: oneshot::Receiver<()>,
) -> Result<()> {
    let failed = |e: std::io::Error| Error::new(Kind::Io, format!("cannot serve: {e}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let served = runtime.block_on(accept(listener, site, &limits, stop)).map_err(failed);
    runtime.shutdown_background();
    served
}

async fn accept(
    listener: TcpListener,
    site: Arc<Site>,
    limits: &Limits,
    mut stop: oneshot::Receiver<()>,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(limits.head).max_buf_size(64 << 10);
    let (places, closing) = (Arc::new(Semaphore::new(limits.connections)), GracefulShutdown::new());
    let mut signals = Signals::catch()?;
    loop {
        // The semaphore is never closed.
        let place = Arc::clone(&places).acquire_owned().await.ok();
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            () = signals.asked() => break,
            _ = &mut stop => break,
        };
        let Ok((stream, _)) = stream else {
            // A client that has gone already, or no file descriptor left: what is open goes on.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let site = Arc::clone(&site);
        let service = service_fn(move |request| {
            let site = Arc::clone(&site);
            async move { Ok::<_, std::convert::Infallible>(site.answer(request).await) }
        });
        let connection = closing.watch(server.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            // A broken connection is its client's affair.
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    tokio::select! {
        () = closing.shutdown() => {}
        () = tokio::time::sleep(limits.grace) => {}
        () = signals.asked() => std::process::exit(130),
    }
    Ok(())
}

/// Ctrl-C and, where there is such a thing, SIGTERM.
struct Signals {
    #[cfg(unix)]
    both: [tokio::signal::unix::Signal; 2],
}

#[cfg(unix)]
impl Signals {
    fn catch() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { both: [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?] })
    }
    async fn asked(&mut self) {
        let [interrupt, terminate] = &mut self.both;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}

#[cfg(not(unix))]
impl Signals {
    fn catch() -> std::io::Result<Self> {
        Ok(Self {})
    }
    async fn asked(&mut self) {
        let _ = tokio::signal::ctrl_c().await;
    }
}
