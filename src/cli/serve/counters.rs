//! What is counted while serving, in the text format of Prometheus.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Requests, their times, and how the model is used.
pub struct Counters {
    registry: Registry,
    answered: Family<[(&'static str, String); 1], Counter>,
    /// Seconds from a request's arrival to its answer.
    pub seconds: Histogram,
    /// Requests answered together.
    pub batches: Histogram,
    /// Requests that wait for the model.
    pub waiting: Gauge,
}

impl Default for Counters {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("gems");
        let answered = Family::default();
        let seconds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
        let (seconds, waiting) = (Histogram::new(seconds), Gauge::default());
        let batches = Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]);
        registry.register(
            "rank_requests",
            "Rankings asked for, by the status of the answer",
            answered.clone(),
        );
        let what = "From a request's arrival to its answer";
        registry.register_with_unit("rank", what, Unit::Seconds, seconds.clone());
        registry.register("batch_requests", "Requests that the model answered together", batches.clone());
        registry.register("waiting_requests", "Requests that wait for the model", waiting.clone());
        Self { registry, answered, seconds, batches, waiting }
    }
}

impl Counters {
    /// Counts an answer with this status.
    pub fn answered(&self, status: u16) {
        self.answered.get_or_create(&[("status", status.to_string())]).inc();
    }

    /// All of it, as OpenMetrics text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
