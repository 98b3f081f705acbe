//! The flags of `gems-engine prepare`.

use crate::cli::options::{DeviceArgs, OutputArgs};
use crate::prepare::{Align, Format, HistoryRule, Unit};
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

#[derive(Subcommand)]
pub(super) enum Command {
    /// A table of events (user, item, timestamp, task or query, label) of any kind: CSV, TSV, JSONL, Parquet.
    ///
    /// Example: gems-engine prepare events logs.csv.gz --columns user=uid,item=sku --items catalogue.csv --out data
    Events(Box<EventsArgs>),
    /// Qilin, Parquet or CSV.
    ///
    /// Example: gems-engine prepare qilin Qilin/ --out data
    Qilin(QilinArgs),
    /// KuaiSAR, CSV.
    ///
    /// Example: gems-engine prepare kuaisar KuaiSAR_v2/data --out data
    #[command(name = "kuaisar")]
    KuaiSar(DirArgs),
    /// Amazon reviews with product-search queries.
    ///
    /// Example: gems-engine prepare amazon Electronics/ --negatives search=bm25:99 --out data
    Amazon(DirArgs),
    /// A made-up world whose best possible metrics are known.
    ///
    /// Example: gems-engine prepare synth --users 1000 --items 500 --seed 1 --out world
    Synth(SynthArgs),
    /// General text written by a model itself: to learn the null space from, to measure forgetting with.
    ///
    /// Example: gems-engine prepare sample --model Qwen2.5-0.5B --out general.jsonl
    Sample(SampleArgs),
    /// Check a data directory and explain what is found.
    ///
    /// Example: gems-engine prepare check data
    Check(CheckArgs),
}

#[derive(Args)]
pub(super) struct EventsArgs {
    /// Tables of events: files, patterns such as 'logs/*.csv', directories of shards.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Tables of the items' texts.
    #[arg(long, value_name = "FILE")]
    pub items: Vec<PathBuf>,
    /// Tables of the queries' texts, for events that name their query by id.
    #[arg(long, value_name = "FILE")]
    pub queries: Vec<PathBuf>,
    /// What the columns are called: user, item, timestamp, task, query, label, request, query_id, history. Nested
    /// fields of JSON and Parquet are paths (user.id); without a header columns are numbers from 1 on.
    #[arg(long, value_name = "ROLE=NAME", value_delimiter = ',')]
    pub columns: Vec<String>,
    /// What the columns of the items' table are called: item, text.
    #[arg(long, value_name = "ROLE=NAME", value_delimiter = ',')]
    pub item_columns: Vec<String>,
    /// What the columns of the queries' table are called: query_id, query.
    #[arg(long, value_name = "ROLE=NAME", value_delimiter = ',')]
    pub query_columns: Vec<String>,
    /// There are no times: take the order of the rows.
    #[arg(long)]
    pub row_order: bool,
    /// Labels that are words: those that say that an item was wanted.
    #[arg(long, value_name = "WORD", value_delimiter = ',')]
    pub wanted: Vec<String>,
    #[command(flatten)]
    pub text: TextArgs,
    #[command(flatten)]
    pub common: CommonArgs,
}

/// How text tables are read, where looking at them does not tell. A value is meant for all tables, or for those that stand
/// before it: `items=latin1`.
#[derive(Args)]
#[command(next_help_heading = "Text tables")]
pub(super) struct TextArgs {
    /// What stands between two fields: , ; | :: tab space \\x01 .. [default: told by the first lines]. This and the next
    /// three may be repeated for tables that differ: events=.., items=.., queries=..
    #[arg(long, value_name = "[TABLES=]SEPARATOR")]
    pub separator: Vec<String>,
    /// Whether the first line names the columns, on or off [default: unless they are named by number].
    #[arg(long, value_name = "[TABLES=]SWITCH")]
    pub header: Vec<String>,
    /// Whether fields may stand in double quotes, on or off [default: unless tabs separate them].
    #[arg(long, value_name = "[TABLES=]SWITCH")]
    pub quotes: Vec<String>,
    /// The encoding, such as latin1 or gbk [default: UTF-8, or what a byte order mark says].
    #[arg(long, value_name = "[TABLES=]NAME")]
    pub encoding: Vec<String>,
    /// A backslash takes the next character's meaning away.
    #[arg(long)]
    pub escapes: bool,
    /// Words that stand for no value, such as NA [default: only empty fields and \\N do].
    #[arg(long, value_name = "WORD", value_delimiter = ',')]
    pub missing: Vec<String>,
}

#[derive(Args)]
pub(super) struct QilinArgs {
    /// The data set's directory.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Take the notes' contents behind their titles.
    #[arg(long)]
    pub contents: bool,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Args)]
pub(super) struct DirArgs {
    /// The data set's directory.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Args)]
pub(super) struct CheckArgs {
    /// The data directory.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Also look whether this model's tokenizer knows the words: a directory, or a name on the Hub that is in the cache.
    #[arg(long, value_name = "MODEL")]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum SplitName {
    /// Of every user and task the last request tests, the one before validates.
    LeaveOneOut,
    /// By time, for all users at once.
    Time,
    /// By user: all requests of a share of the users.
    Users,
    /// The source's own test requests.
    Given,
}

#[derive(Args)]
pub(super) struct WriteArgs {
    /// The data directory to write.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Replace a directory that `prepare` made before.
    #[arg(long)]
    pub overwrite: bool,
    /// The files that are written.
    #[arg(long, value_enum, default_value = "jsonl")]
    pub format: Format,
    /// Of every random decision.
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// General text (.txt or .jsonl) to copy into the directory, for the null space and to measure forgetting.
    #[arg(long, value_name = "FILE")]
    pub general: Option<PathBuf>,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Args)]
pub(super) struct CommonArgs {
    #[command(flatten)]
    pub write: WriteArgs,
    /// Which requests are held out.
    #[arg(long, value_enum, default_value = "leave-one-out")]
    pub split: SplitName,
    /// Split by time or users: share of the events, or users, for validation [default: 0.1].
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub valid_share: Option<f64>,
    /// Split by time or users: share of the events, or users, for the test [default: 0.1].
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub test_share: Option<f64>,
    /// Split by time: the first time of validation (as the log has them, or a date), instead of a share.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub valid_from: Option<String>,
    /// Split by time: the first time of the test, instead of a share.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub test_from: Option<String>,
    /// What times that are numbers are counted in [default: as their size tells].
    #[arg(long, value_enum, value_name = "UNIT")]
    pub time_unit: Option<Unit>,
    /// Order of operations, histories and negatives of the published experiments, leaks included.
    #[arg(long)]
    pub published_split: bool,
    /// Fewest wanted events of a user [default: 5].
    #[arg(long, value_name = "N")]
    pub min_user: Option<u32>,
    /// Fewest wanted events of an item [default: 5].
    #[arg(long, value_name = "N")]
    pub min_item: Option<u32>,
    /// Fewest requests of a user in every task [default: 0].
    #[arg(long, value_name = "N")]
    pub min_per_task: Option<u32>,
    /// What a request's history is made of [default: all].
    #[arg(long, value_enum)]
    pub history: Option<HistoryRule>,
    /// Most history items of a row, the newest [default: 50].
    #[arg(long, value_name = "N")]
    pub max_history: Option<usize>,
    /// Fewest history items of a row [default: 1; none where there is a query].
    #[arg(long, value_name = "N")]
    pub min_history: Option<usize>,
    /// Share of the training rows kept [default: 1].
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub train_sample: Option<f64>,
    /// Negatives of validation and test: uniform, popularity, bm25, impressions, or none; may be repeated
    /// [default: uniform:99].
    #[arg(long, value_name = "[TASK=]KIND:N[,..]")]
    pub negatives: Vec<String>,
    /// Also train what the items are called: title-to-item, item-to-title; for semantic ids.
    #[arg(long, value_enum, value_name = "TASK", value_delimiter = ',')]
    pub align: Vec<Align>,
    /// Events count as wanted from this label on [default: above 0].
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub min_label: Option<f64>,
    /// Longest item text, in characters [default: 200].
    #[arg(long, value_name = "N")]
    pub text_chars: Option<usize>,
    /// Most items that may be left [default: 4194304].
    #[arg(long, value_name = "N")]
    pub max_items: Option<usize>,
    /// Leave out up to so many rows that are not as they must be, and count them by reason.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub skip_bad_rows: usize,
}

#[derive(Args)]
pub(super) struct SynthArgs {
    #[command(flatten)]
    pub write: WriteArgs,
    /// Users.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub users: u64,
    /// Items.
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub items: usize,
    /// Events of every user [default: 12, or as many as a small catalogue allows].
    #[arg(long, value_name = "N")]
    pub length: Option<usize>,
    /// Share of the items after which the two tasks want different things.
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    pub conflict: f64,
    /// Chance of an event that follows no rule.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    pub noise: f64,
    /// Share of the test pairs to put into training, to test leak checks with.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub leak: f64,
    /// Write a table of events instead of splits, for `prepare events` to read.
    #[arg(long)]
    pub events: bool,
}

#[derive(Args)]
pub(super) struct SampleArgs {
    /// The model: a Hugging Face directory, or a name on the Hub that is in the local cache.
    #[arg(long, value_name = "MODEL")]
    pub model: PathBuf,
    /// The file to write, a document a line.
    #[arg(long, value_name = "FILE", default_value = "general.jsonl")]
    pub out: PathBuf,
    /// Replace a file of that name.
    #[arg(long)]
    pub overwrite: bool,
    /// Documents.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub documents: usize,
    /// Most tokens of a document.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub length: usize,
    /// Of every random decision.
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}
