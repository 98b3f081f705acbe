//! What is answered to which request.

use super::desk::{Desk, Refused};
use crate::cli::ask::{Ask, why};
use crate::cli::session::Session;
use crate::data::Catalogue;
use crate::error::{Error, Kind};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Largest body of a request, in bytes.
const BODY: usize = 1 << 20;

/// Most items that `/items` finds.
const FOUND: usize = 20;

/// The page and its parts: they name nothing outside of this server.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Everything that is served.
pub struct Site {
    desk: Desk,
    timeout: Duration,
    about: Value,
    items: Arc<Catalogue>,
    /// Whether only this machine may ask.
    loopback: bool,
}

type Reply = Response<Full<Bytes>>;

impl Site {
    /// Of the run that `session` has opened, on `address`.
    pub fn new(session: &Session, run: &Path, desk: Desk, timeout: Duration, address: SocketAddr) -> Self {
        let task = |name: &String| {
            let missing = |history, query| session.prompts.missing(name, history, query).is_none();
            json!({
                "task": name,
                "history_alone": missing(true, false),
                "query_alone": missing(false, true),
                "shows_query": session.prompts.shows_query(name),
            })
        };
        let tasks: Vec<Value> = session.data.tasks.iter().map(task).collect();
        let name = run.file_name().unwrap_or(run.as_os_str()).to_string_lossy();
        let items = session.data.items.len();
        let about =
            json!({"run": name, "version": env!("CARGO_PKG_VERSION"), "items": items, "tasks": tasks});
        let items = Arc::new(session.data.items.clone());
        Self { desk, timeout, about, items, loopback: address.ip().is_loopback() }
    }

    /// The answer to a request.
    pub async fn answer(&self, request: Request<Incoming>) -> Reply {
        if self.loopback && !names_this_machine(&request) {
            let why = "this server answers to localhost only: --listen chooses another address";
            return refusal(StatusCode::MISDIRECTED_REQUEST, why);
        }
        let page =
            |kind, text: &'static str| with_type(StatusCode::OK, kind, Bytes::from_static(text.as_bytes()));
        match (request.method(), request.uri().path()) {
            (&Method::POST, "/rank") => self.counted(request).await,
            (&Method::GET, "/") => page("text/html; charset=utf-8", include_str!("page/page.html")),
            (&Method::GET, "/page.js") => {
                page("text/javascript; charset=utf-8", include_str!("page/page.js"))
            }
            (&Method::GET, "/page.css") => page("text/css; charset=utf-8", include_str!("page/page.css")),
            (&Method::GET, "/about") => answer(StatusCode::OK, &self.about),
            (&Method::GET, "/items") => self.find(request.uri().query().unwrap_or_default()).await,
            (&Method::GET, "/health") => answer(StatusCode::OK, &json!({"status": "ready"})),
            (&Method::GET, "/metrics") => {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                with_type(StatusCode::OK, kind, Bytes::from(self.desk.counters.text()))
            }
            (_, "/rank") => not_allowed("POST"),
            (_, "/" | "/page.js" | "/page.css" | "/about" | "/items" | "/health" | "/metrics") => {
                not_allowed("GET")
            }
            (_, path) => refusal(StatusCode::NOT_FOUND, &format!("there is no {path}; POST /rank ranks")),
        }
    }

    /// A ranking, counted and timed.
    async fn counted(&self, request: Request<Incoming>) -> Reply {
        let start = Instant::now();
        let reply = match tokio::time::timeout(self.timeout, self.rank(request)).await {
            Ok(reply) => reply,
            Err(_) => {
                let why = format!("no answer within {} s: the server is busy", self.timeout.as_secs());
                refusal(StatusCode::GATEWAY_TIMEOUT, &why)
            }
        };
        self.desk.counters.seconds.observe(start.elapsed().as_secs_f64());
        self.desk.counters.answered(reply.status().as_u16());
        reply
    }

    async fn rank(&self, request: Request<Incoming>) -> Reply {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default().trim();
        // Also keeps pages of other sites out: a browser does not send them this type without asking first.
        if !kind.eq_ignore_ascii_case("application/json") {
            let why = "the body is JSON: say so with the header `Content-Type: application/json`";
            return refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, why);
        }
        let body = match Limited::new(request.into_body(), BODY).collect().await {
            Ok(body) => body.to_bytes(),
            Err(e) if e.is::<http_body_util::LengthLimitError>() => {
                return refusal(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    &format!("the body is longer than {BODY} bytes"),
                );
            }
            Err(e) => return refusal(StatusCode::BAD_REQUEST, &format!("the body broke off: {e}")),
        };
        let ask = match serde_json::from_slice::<Value>(&body) {
            Ok(Value::Object(fields)) => Ask::from_json(&fields),
            Ok(_) => Err(Error::data("no object").remedy(r#"{"history": ["id", ..], "query": "text"}"#)),
            Err(e) => Err(Error::data(format!("not valid JSON: {e}"))),
        };
        let waiting = match ask.map(|ask| self.desk.ask(ask)) {
            Ok(Ok(waiting)) => waiting,
            Ok(Err(Refused::Full)) => {
                let mut reply = refusal(StatusCode::SERVICE_UNAVAILABLE, "too many requests wait already");
                reply.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
                return reply;
            }
            Ok(Err(Refused::Closed)) => return gone(),
            Err(e) => return refusal(StatusCode::BAD_REQUEST, &why(&e)),
        };
        match waiting.await {
            Ok(Ok(ranking)) => answer(StatusCode::OK, &ranking),
            Ok(Err(e)) if matches!(e.kind, Kind::Usage | Kind::Data) => {
                refusal(StatusCode::BAD_REQUEST, &why(&e))
            }
            Ok(Err(e)) => refusal(StatusCode::INTERNAL_SERVER_ERROR, &why(&e)),
            Err(_) => gone(),
        }
    }

    /// Items whose text or id contains what is asked for (`text=..`), in the catalogue's order.
    async fn find(&self, query: &str) -> Reply {
        let mut pairs = form_urlencoded::parse(query.as_bytes());
        let text =
            pairs.find(|(name, _)| name == "text").map_or(String::new(), |(_, text)| text.into_owned());
        let items = Arc::clone(&self.items);
        let search = move || {
            let wanted = text.to_lowercase();
            let fits = |i: &u32| {
                let holds = |text: &str| text.to_lowercase().contains(&wanted);
                holds(items.id(*i)) || items.text(*i).is_some_and(holds)
            };
            let found = (0..items.len() as u32).filter(fits).take(FOUND);
            found.map(|i| json!({"item": items.id(i), "text": items.text(i)})).collect::<Vec<Value>>()
        };
        match tokio::task::spawn_blocking(search).await {
            Ok(found) => answer(StatusCode::OK, &json!({"items": found})),
            Err(_) => gone(),
        }
    }
}

/// Whether a request means this machine: a page elsewhere could have its own name lead here.
fn names_this_machine(request: &Request<Incoming>) -> bool {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn answer(status: StatusCode, value: &Value) -> Reply {
    with_type(status, "application/json", Bytes::from(format!("{value}\n")))
}

fn refusal(status: StatusCode, why: &str) -> Reply {
    answer(status, &json!({ "error": why }))
}

fn gone() -> Reply {
    refusal(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping")
}

fn not_allowed(method: &'static str) -> Reply {
    let mut reply = refusal(StatusCode::METHOD_NOT_ALLOWED, &format!("ask with {method}"));
    reply.headers_mut().insert(header::ALLOW, HeaderValue::from_static(method));
    reply
}

fn with_type(status: StatusCode, kind: &'static str, body: Bytes) -> Reply {
    let mut reply = Response::new(Full::new(body));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}
