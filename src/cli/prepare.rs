//! `gems-engine prepare`.

use super::options::{DeviceArgs, OutputArgs, SettingsArgs};
use super::session::configuration;
use crate::data::{Catalogue, DataSettings, ItemIdentity, PromptSide, Vocabulary};
use crate::error::{Error, Result};
use crate::eval::{SampleSettings, sample_text};
use crate::files::write_atomically;
use crate::model::{LoadOptions, Model};
use crate::prepare::{
    Amazon, EventColumns, Events, Format, HistoryRule, KuaiSar, Qilin, Settings, Source, SplitRule, Target,
    Watch, World, check, run as prepare, synth,
};
use crate::report::Progress;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Make a data directory from logs, or check one.
///
/// Example: gems-engine prepare events logs/ --items items.csv --out data
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub struct PrepareArgs {
    /// Check a data directory (as `prepare check DIR`).
    #[arg(long, value_name = "DIR")]
    check: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Subcommand)]
enum Command {
    /// A table of events (user, item, timestamp, task or query, label) of any kind: CSV, TSV, JSONL, Parquet.
    ///
    /// Example: gems-engine prepare events logs.csv.gz --columns user=uid,item=sku --items catalogue.csv --out data
    Events(EventsArgs),
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
struct EventsArgs {
    /// Tables of events, or directories of shards.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Tables of the items' texts.
    #[arg(long, value_name = "FILE")]
    items: Vec<PathBuf>,
    /// What the columns are called: user, item, timestamp, task, query, label, request.
    #[arg(long, value_name = "ROLE=NAME", value_delimiter = ',')]
    columns: Vec<String>,
    /// What the columns of the items' table are called: item, text.
    #[arg(long, value_name = "ROLE=NAME", value_delimiter = ',')]
    item_columns: Vec<String>,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Args)]
struct QilinArgs {
    /// The data set's directory.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Take the notes' contents behind their titles.
    #[arg(long)]
    contents: bool,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Args)]
struct DirArgs {
    /// The data set's directory.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Args)]
struct CheckArgs {
    /// The data directory.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Also look whether this model's tokenizer knows the words.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SplitName {
    /// Of every user and task the last request tests, the one before validates.
    LeaveOneOut,
    /// By time, for all users at once.
    Time,
    /// The source's own test requests.
    Given,
}

#[derive(Args)]
struct WriteArgs {
    /// The data directory to write.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Replace a directory that `prepare` made before.
    #[arg(long)]
    overwrite: bool,
    /// The files that are written.
    #[arg(long, value_enum, default_value = "jsonl")]
    format: Format,
    /// Of every random decision.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// General text (.txt or .jsonl) to copy into the directory, for the null space and to measure forgetting.
    #[arg(long, value_name = "FILE")]
    general: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args)]
struct CommonArgs {
    #[command(flatten)]
    write: WriteArgs,
    /// Which requests are held out.
    #[arg(long, value_enum, default_value = "leave-one-out")]
    split: SplitName,
    /// Split by time: share of the events for validation.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    valid_share: f64,
    /// Split by time: share of the events for the test.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    test_share: f64,
    /// Split by time: the first time of validation, instead of a share.
    #[arg(long, value_name = "TIME")]
    valid_from: Option<i64>,
    /// Split by time: the first time of the test, instead of a share.
    #[arg(long, value_name = "TIME")]
    test_from: Option<i64>,
    /// Order of operations, histories and negatives of the published experiments, leaks included.
    #[arg(long)]
    published_split: bool,
    /// Fewest wanted events of a user [default: 5].
    #[arg(long, value_name = "N")]
    min_user: Option<u32>,
    /// Fewest wanted events of an item [default: 5].
    #[arg(long, value_name = "N")]
    min_item: Option<u32>,
    /// Fewest requests of a user in every task [default: 0].
    #[arg(long, value_name = "N")]
    min_per_task: Option<u32>,
    /// What a request's history is made of [default: all].
    #[arg(long, value_enum)]
    history: Option<HistoryRule>,
    /// Most history items of a row, the newest [default: 50].
    #[arg(long, value_name = "N")]
    max_history: Option<usize>,
    /// Fewest history items of a row [default: 1; none where there is a query].
    #[arg(long, value_name = "N")]
    min_history: Option<usize>,
    /// Share of the training rows kept [default: 1].
    #[arg(long, value_name = "SHARE")]
    train_sample: Option<f64>,
    /// Negatives of validation and test: uniform, popularity, bm25, impressions, or none; may be repeated
    /// [default: uniform:99].
    #[arg(long, value_name = "[TASK=]KIND:N[,..]")]
    negatives: Vec<String>,
    /// Events count as wanted from this label on [default: above 0].
    #[arg(long, value_name = "X")]
    min_label: Option<f64>,
    /// Longest item text, in characters [default: 200].
    #[arg(long, value_name = "N")]
    text_chars: Option<usize>,
    /// Most items that may be left [default: 4194304].
    #[arg(long, value_name = "N")]
    max_items: Option<usize>,
    /// Leave out up to so many rows that are not as they must be, and count them by reason.
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip_bad_rows: usize,
}

#[derive(Args)]
struct SynthArgs {
    #[command(flatten)]
    write: WriteArgs,
    /// Users.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    users: u64,
    /// Items.
    #[arg(long, value_name = "N", default_value_t = 500)]
    items: usize,
    /// Events of every user [default: 12, or as many as a small catalogue allows].
    #[arg(long, value_name = "N")]
    length: Option<usize>,
    /// Share of the items after which the two tasks want different things.
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    conflict: f64,
    /// Chance of an event that follows no rule.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    noise: f64,
    /// Share of the test pairs to put into training, to test leak checks with.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    leak: f64,
    /// Write a table of events instead of splits, for `prepare events` to read.
    #[arg(long)]
    events: bool,
}

#[derive(Args)]
struct SampleArgs {
    /// The model: a Hugging Face directory.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The file to write, a document a line.
    #[arg(long, value_name = "FILE", default_value = "general.jsonl")]
    out: PathBuf,
    /// Documents.
    #[arg(long, value_name = "N", default_value_t = 512)]
    documents: usize,
    /// Most tokens of a document.
    #[arg(long, value_name = "N", default_value_t = 128)]
    length: usize,
    /// Of every random decision.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs the command.
pub fn run(args: &PrepareArgs) -> Result<()> {
    match (&args.check, &args.command) {
        (Some(dir), _) => check_directory(dir, None, args.output.json),
        (None, Some(Command::Check(args))) => {
            check_directory(&args.dir, args.model.as_deref(), args.output.json)
        }
        (None, Some(Command::Synth(args))) => make_world(args),
        (None, Some(Command::Sample(args))) => sample(args),
        (None, Some(Command::Events(args))) => {
            let mut columns = EventColumns::default();
            args.columns.iter().try_for_each(|c| columns.set(c))?;
            args.item_columns.iter().try_for_each(|c| columns.set_item(c))?;
            let (files, items) = (args.files.clone(), args.items.clone());
            from_source(Source::Events(Box::new(Events { files, items, columns })), &args.common)
        }
        (None, Some(Command::Qilin(args))) => {
            let (dir, contents) = (args.dir.clone(), args.contents);
            from_source(Source::Qilin(Qilin { dir, contents }), &args.common)
        }
        (None, Some(Command::KuaiSar(args))) => {
            from_source(Source::KuaiSar(KuaiSar { dir: args.dir.clone() }), &args.common)
        }
        (None, Some(Command::Amazon(args))) => {
            from_source(Source::Amazon(Amazon { dir: args.dir.clone() }), &args.common)
        }
        (None, None) => Err(Error::usage("nothing to do")
            .remedy("prepare events|qilin|kuaisar|amazon|synth .. --out DIR, or prepare check DIR")),
    }
}

fn settings(args: &CommonArgs, source: &Source) -> Result<Settings> {
    let mut s = Settings {
        seed: args.write.seed,
        format: args.write.format,
        skip_bad_rows: args.skip_bad_rows,
        min_label: args.min_label,
        ..Settings::default()
    };
    s.split = match args.split {
        SplitName::LeaveOneOut => SplitRule::LeaveOneOut,
        SplitName::Given => SplitRule::Given,
        SplitName::Time => SplitRule::Time {
            valid: args.valid_share,
            test: args.test_share,
            valid_from: args.valid_from,
            test_from: args.test_from,
        },
    };
    if args.published_split {
        source.publish(&mut s);
    }
    // What is said on the command line wins over what was published.
    macro_rules! take {
        ($($flag:ident => $place:expr),*) => {
            $(if let Some(value) = args.$flag { $place = value; })*
        };
    }
    take!(min_user => s.core.user, min_item => s.core.item, min_per_task => s.core.per_task,
        history => s.history, max_history => s.max_history, min_history => s.min_history,
        train_sample => s.train_sample, text_chars => s.text_chars, max_items => s.max_items);
    args.negatives.iter().try_for_each(|n| s.negatives.set(n))?;
    Ok(s)
}

fn target(args: &WriteArgs) -> Target {
    Target { out: args.out.clone(), overwrite: args.overwrite, general: args.general.clone() }
}

/// Runs `work` under a progress display and a handler of interrupts.
fn watched<T>(quiet: bool, work: impl FnOnce(&mut Watch) -> Result<T>) -> Result<T> {
    let interrupted = super::catch_interrupts()?;
    let (mut shown, mut progress) = ("", None::<Progress>);
    let mut tick = |stage: &'static str, done: u64, total: u64| {
        if stage != shown {
            shown = stage;
            if let Some(mut before) = progress.replace(Progress::new(stage, total, quiet)) {
                before.finish();
            }
        }
        if let Some(progress) = &mut progress {
            progress.tick(done, String::new);
        }
    };
    let result = work(&mut Watch { tick: &mut tick, interrupted });
    if let Some(mut progress) = progress {
        progress.finish();
    }
    result
}

fn from_source(source: Source, args: &CommonArgs) -> Result<()> {
    let settings = settings(args, &source)?;
    let (target, quiet) = (target(&args.write), args.write.output.json);
    let card = watched(quiet, |watch| prepare(&source, &settings, &target, watch))?;
    let value = serde_json::to_value(&card).unwrap_or_default();
    let text = format!("{}{}: items, train, valid, test, card.json", card.describe(), target.out.display());
    print(quiet, &target.out, value, &text)
}

fn make_world(args: &SynthArgs) -> Result<()> {
    let world = World {
        users: args.users,
        items: args.items,
        length: args.length.unwrap_or_else(|| World::usual_length(args.items)),
        conflict: args.conflict,
        noise: args.noise,
        leak: args.leak,
        seed: args.write.seed,
        format: args.write.format,
        events: args.events,
    };
    let (target, quiet) = (target(&args.write), args.write.output.json);
    let card = watched(quiet, |watch| synth(&world, &target, watch))?;
    let mut text = String::from("best possible on the test:\n");
    for (task, metrics) in card["written"]["optimum"].as_object().into_iter().flatten() {
        let of = |name: &str| metrics[name].as_f64().unwrap_or(0.0);
        text += &format!("  {task:<8} hit@10 {:.4}  ndcg@10 {:.4}\n", of("hit@10"), of("ndcg@10"));
    }
    text += &format!("{}: {}", target.out.display(), card["written"]["rows"]);
    print(quiet, &target.out, card, &text)
}

fn sample(args: &SampleArgs) -> Result<()> {
    let config = configuration(&SettingsArgs::default(), &args.device, Vec::new())?;
    let model =
        Model::load(&args.model, super::device::open(&config, &args.device)?, &LoadOptions::default())?;
    // A catalogue without items adds no tokens.
    let plain = DataSettings { item_identity: ItemIdentity::Text, ..DataSettings::default() };
    let (none, kind) = (Catalogue::default(), PromptSide::Decoder);
    let vocabulary = Vocabulary::new(&args.model, &none, &plain, kind, None)?;
    let (begin, quiet) = (vocabulary.encode("")?, args.output.json);
    let settings = SampleSettings { documents: args.documents, length: args.length.max(2), seed: args.seed };
    let documents = watched(quiet, |watch| {
        let ends = (begin.as_slice(), vocabulary.eos());
        sample_text(&model, ends, vocabulary.base_size(), settings, &mut |done, all| {
            watch.at("writing text", done as u64, all as u64)
        })
    })?;
    let mut lines = String::new();
    for document in &documents {
        let text = vocabulary.decode(document, true)?;
        if !text.trim().is_empty() {
            lines += &format!("{}\n", json!({"text": text.trim()}));
        }
    }
    write_atomically(&args.out, lines.as_bytes())?;
    let tokens: usize = documents.iter().map(Vec::len).sum();
    let text = match quiet {
        true => json!({"out": args.out, "documents": lines.lines().count(), "tokens": tokens}).to_string(),
        false => format!("{}: {} documents, {tokens} tokens", args.out.display(), lines.lines().count()),
    };
    writeln!(std::io::stdout(), "{text}").map_err(|e| Error::io("write", "standard output", e))
}

fn print(json: bool, out: &Path, card: Value, text: &str) -> Result<()> {
    let text = match json {
        true => json!({"out": out.display().to_string(), "card": card}).to_string(),
        false => text.into(),
    };
    writeln!(std::io::stdout(), "{text}").map_err(|e| Error::io("write", "standard output", e))
}

fn check_directory(dir: &Path, model: Option<&Path>, json: bool) -> Result<()> {
    let found = check(dir, &DataSettings::default(), model)?;
    let text = match json {
        true => serde_json::to_string(&found).unwrap_or_default() + "\n",
        false => found.describe(),
    };
    write!(std::io::stdout(), "{text}").map_err(|e| Error::io("write", "standard output", e))?;
    match found.problems.len() {
        0 => Ok(()),
        n => Err(Error::data(format!("{n} problems")).at(dir.display()).remedy("they are listed above")),
    }
}
