//! What TensorBoard shows, as `Summary.Value` messages (tensorflow's `summary.proto`, TensorBoard's `hparams/api.proto` and
//! `hparams/plugin_data.proto`; the fields used are named where they are put).

use super::wire::Message;
use serde_json::Value;

/// `Value { tag = 1 (string), simple_value = 2 (float) }`
pub(super) fn scalar(tag: &str, value: f32) -> Message {
    Message::default().bytes(1, tag.as_bytes()).float(2, value)
}

/// Most bars of a histogram.
const BARS: usize = 30;

/// Finite values as bars of equal width. `Value { tag = 1, histo = 5 (HistogramProto { min = 1, max = 2, num = 3, sum = 4,
/// sum_squares = 5 (double), bucket_limit = 6, bucket = 7 (repeated double) }) }`; `None` where there are none.
pub(super) fn histogram(tag: &str, values: &[f64]) -> Option<Message> {
    let finite: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    let (low, high) =
        finite.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
    if finite.is_empty() {
        return None;
    }
    let bars = if low < high { BARS } else { 1 };
    let width = (high - low) / bars as f64;
    // The last limit is the largest value itself, which rounding must not leave out.
    let limits: Vec<f64> =
        (1..=bars).map(|i| if i == bars { high } else { low + width * i as f64 }).collect();
    let mut counts = vec![0.0; bars];
    finite.iter().for_each(|v| counts[limits.partition_point(|limit| limit < v)] += 1.0);
    let histogram = Message::default()
        .double(1, low)
        .double(2, high)
        .double(3, finite.len() as f64)
        .double(4, finite.iter().sum())
        .double(5, finite.iter().map(|v| v * v).sum())
        .doubles(6, &limits)
        .doubles(7, &counts);
    Some(Message::default().bytes(1, tag.as_bytes()).message(5, histogram))
}

/// Markdown. `Value { tag = 1, tensor = 8 (TensorProto { dtype = 1 (DT_STRING = 7), tensor_shape = 2, string_val = 8 }),
/// metadata = 9 }`
pub(super) fn text(tag: &str, text: &str) -> Message {
    let tensor = Message::default().varint(1, 7).message(2, shape_of_one()).bytes(8, text.as_bytes());
    let plugin = Message::default().bytes(1, b"text");
    Message::default().bytes(1, tag.as_bytes()).message(8, tensor).message(9, tensors(plugin))
}

/// The settings that a run was started with.
/// `HParamsPluginData { session_start_info = 3 { hparams = 1 (map), start_time_secs = 5 (double) } }`
pub(super) fn session_start(settings: &[(String, Value)], time: f64) -> Message {
    let entry = |start: Message, (name, value): &(String, Value)| {
        start.message(1, Message::default().bytes(1, name.as_bytes()).message(2, any(value)))
    };
    let start = settings.iter().fold(Message::default(), entry).double(5, time);
    hparams("_hparams_/session_start_info", Message::default().message(3, start))
}

/// That it came to its end. `HParamsPluginData { session_end_info = 4 { status = 1 (SUCCESS = 1), end_time_secs = 2 } }`
pub(super) fn session_end(time: f64) -> Message {
    let end = Message::default().varint(1, 1).double(2, time);
    hparams("_hparams_/session_end_info", Message::default().message(4, end))
}

/// Which settings and metrics stand in the table. `HParamsPluginData { experiment = 2 { hparam_infos = 4 { name = 1,
/// type = 4 }, metric_infos = 5 { name = 1 { tag = 2 } } } }`
pub(super) fn experiment(settings: &[(String, Value)], metrics: &[String]) -> Message {
    let setting = |all: Message, (name, value): &(String, Value)| {
        let kind = match value {
            Value::Bool(_) => 2,
            Value::Number(_) => 3,
            _ => 1,
        };
        all.message(4, Message::default().bytes(1, name.as_bytes()).varint(4, kind))
    };
    let metric = |all: Message, tag: &String| {
        all.message(5, Message::default().message(1, Message::default().bytes(2, tag.as_bytes())))
    };
    let all = settings.iter().fold(Message::default(), setting);
    hparams("_hparams_/experiment", Message::default().message(2, metrics.iter().fold(all, metric)))
}

/// The plugin reads its data from the metadata; the tensor has to be there: one f32 zero (`DT_FLOAT = 1`, `float_val = 5`).
fn hparams(tag: &str, data: Message) -> Message {
    let plugin = Message::default().bytes(1, b"hparams").message(2, data);
    let nothing = Message::default().varint(1, 1).message(2, shape_of_one()).float(5, 0.0);
    Message::default().bytes(1, tag.as_bytes()).message(8, nothing).message(9, tensors(plugin))
}

/// `SummaryMetadata { plugin_data = 1 { plugin_name = 1, content = 2 }, data_class = 4 (TENSOR = 2) }`
fn tensors(plugin: Message) -> Message {
    Message::default().message(1, plugin).varint(4, 2)
}

/// `TensorShapeProto { dim = 2 { size = 1 } }`
fn shape_of_one() -> Message {
    Message::default().message(2, Message::default().varint(1, 1))
}

/// `google.protobuf.Value { number_value = 2 (double), string_value = 3, bool_value = 4 }`
fn any(value: &Value) -> Message {
    match value {
        Value::Bool(value) => Message::default().varint(4, u64::from(*value)),
        Value::Number(value) => Message::default().double(2, value.as_f64().unwrap_or(f64::NAN)),
        Value::String(value) => Message::default().bytes(3, value.as_bytes()),
        other => Message::default().bytes(3, other.to_string().as_bytes()),
    }
}
