//! The published logs go in by the commands of docs/data.md, as they stand there; titles become tasks.

use super::{gz, write};
use crate::cli::engine;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Eight users who take eight items each, one after the other: user u takes item u + k at time k.
fn each(row: impl Fn(usize, usize, usize) -> String) -> String {
    let pairs = (0..8).flat_map(|k| (0..8).map(move |u| (u, k)));
    pairs.map(|(u, k)| row(u, (u + k) % 8, k) + "\n").collect()
}

fn items(row: impl Fn(usize) -> String) -> String {
    (0..8).map(|i| row(i) + "\n").collect()
}

/// The published logs, in miniature and in their own forms.
fn published(dir: &Path) {
    let file = |name: &str, text: String| write(&dir.join(name), text);
    let time = |k: usize| 978_300_760 + 60 * k;
    let title = |i: usize| format!("Title {i}");
    file(
        "ml-100k-recbole/ml-100k.inter",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n".to_string()
            + &each(|u, i, k| format!("{u}\t{i}\t5\t{}", time(k))),
    );
    file(
        "ml-100k-recbole/ml-100k.item",
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n".to_string()
            + &items(|i| format!("{i}\t{}\t1995\tDrama \"War", title(i))),
    );
    file("ml-100k-recbole/ml-100k.user", "user_id:token\tage:token\n1\t2\n".into());
    file("ml-100k/u.data", each(|u, i, k| format!("{u}\t{i}\t4\t{}", time(k))));
    let latin = |text: String| encoding(&text);
    write(
        &dir.join("ml-100k/u.item"),
        latin(items(|i| {
            format!(
                "{i}|{} (1995)|01-Jan-1995||http://us.imdb.com/M|0|0|1",
                if i == 3 { "Misérables, Les".into() } else { title(i) }
            )
        })),
    );
    file("ml-1m/ratings.dat", each(|u, i, k| format!("{u}::{i}::5::{}", time(k))));
    write(
        &dir.join("ml-1m/movies.dat"),
        latin(items(|i| format!("{i}::{}: A \"Film\" (1995)::Animation|Children's", title(i)))),
    );
    file(
        "ml-latest-small/ratings.csv",
        "userId,movieId,rating,timestamp\n".to_string() + &each(|u, i, k| format!("{u},{i},4.5,{}", time(k))),
    );
    file(
        "ml-latest-small/tags.csv",
        "userId,movieId,tag,timestamp\n".to_string()
            + &each(|u, i, k| format!("{u},{i},\"tag, {i}\",{}", time(k) + 1)),
    );
    file(
        "ml-latest-small/movies.csv",
        "movieId,title,genres\n".to_string() + &items(|i| format!("{i},\"{}, The (1995)\",Drama", title(i))),
    );
    let head = "user_id,history_item_title,item_title,history_item_id,item_id,history_item_sid,item_sid\n";
    for (name, of) in [("train", 1..6), ("valid", 6..7), ("test", 7..8)] {
        let row = |u: usize, k: usize| {
            let past: Vec<String> = (0..k).map(|k| ((u + k) % 8).to_string()).collect();
            format!("A{u},\"['x, y']\",t,\"[{}]\",{},['<a_1>'],<a_2>\n", past.join(", "), (u + k) % 8)
        };
        let rows: String =
            (0..8).flat_map(|u| of.clone().map(move |k| (u, k))).map(|(u, k)| row(u, k)).collect();
        file(&format!("amazon18/{name}.csv"), head.to_string() + &rows);
    }
    let by_key = |text: &dyn Fn(usize) -> String| {
        format!(
            "{{\n{}\n}}",
            (0..8).map(|i| format!("    \"{i}\": {}", text(i))).collect::<Vec<_>>().join(",\n")
        )
    };
    let described = by_key(&|i| format!("{{\n \"title\": \"{}\", \"description\": \"d\"}}", title(i)));
    file("amazon18/Office_Products.item.json", described.clone());
    file("letter/Instruments.item.json", described);
    file(
        "letter/Instruments.inter.json",
        by_key(&|u| {
            format!("[\n {}\n]", (0..8).map(|k| ((u + k) % 8).to_string()).collect::<Vec<_>>().join(",\n "))
        }),
    );
    let grouped: String =
        (1..9).flat_map(|u| (0..8).map(move |k| format!("{u} {}\n", (u + k) % 8))).collect();
    file("sasrec/Beauty.txt", grouped);
    file(
        "diginetica/train-item-views.csv",
        "sessionId;userId;itemId;timeframe;eventdate\n".to_string()
            + &each(|u, i, k| format!("{u};NA;{i};{};2016-05-09", 1000 * k)),
    );
    file(
        "diginetica/products.csv",
        "itemId;pricelog2;product.name.tokens\n".to_string() + &items(|i| format!("{i};10;{},{}", i, i + 1)),
    );
    file(
        "bookcrossing/BX-Book-Ratings.csv",
        "\"User-ID\";\"ISBN\";\"Book-Rating\"\n".to_string()
            + &each(|u, i, _| format!("\"{u}\";\"00{i}X\";\"8\"")),
    );
    write(
        &dir.join("bookcrossing/BX-Books.csv"),
        latin(
            "\"ISBN\";\"Book-Title\";\"Book-Author\"\n".to_string()
                + &items(|i| format!("\"00{i}X\";\"The \\\"{}\\\" &amp; Éclair\";\"A; B\"", title(i))),
        ),
    );
    file(
        "anime/rating.csv",
        "user_id,anime_id,rating\n".to_string()
            + &each(|u, i, _| format!("{u},{i},{}", if u == 8 { -1 } else { 10 })),
    );
    file(
        "anime/anime.csv",
        "anime_id,name,genre,type\n".to_string()
            + &items(|i| format!("{i},{}&#039;,\"Drama, School\",TV", title(i))),
    );
    file(
        "goodbooks/ratings.csv",
        "user_id,book_id,rating\n".to_string() + &each(|u, i, _| format!("{u},{i},5")),
    );
    file(
        "goodbooks/books.csv",
        "book_id,goodreads_book_id,authors,title\n".to_string()
            + &items(|i| format!("{i},9{i},\"A, B\",\"{} (Series, #1)\"", title(i))),
    );
    write(
        &dir.join("steam/steam_reviews.json.gz"),
        gz(&each(|u, i, k| {
            format!(
                "{{u'username': u'Caf\\xe9 {u}', u'product_id': u'{i}', u'hours': 3.2, u'date': u'2018-01-{:02}', u'text': u\"It's\", u'early_access': False}}",
                k + 1
            )
        })),
    );
    write(
        &dir.join("steam/steam_games.json.gz"),
        gz(&(items(|i| format!("{{u'id': u'{i}', u'title': u'{}', u'tags': [u'Indie']}}", title(i)))
            + "{u'title': u'no id'}\n")),
    );
    file(
        "steam/steam-200k.csv",
        each(|u, i, _| {
            format!("{u},\"The {}\",purchase,1.0,0\n{u},\"The {}\",play,2.5,0", title(i), title(i))
        }),
    );
    file(
        "retailrocket/events.csv",
        "timestamp,visitorid,event,itemid,transactionid\n".to_string()
            + &each(|u, i, k| {
                let (time, kind) =
                    (1_433_221_332_000 + k * 1000, if k == 7 { "transaction" } else { "addtocart" });
                format!("{time},{u},view,{},\n{},{u},{kind},{i},", (i + 1) % 8, time + 500)
            }),
    );
    let judged: String =
        (0..60).map(|q| format!("q{q} 0 d{} 1 \nq{q} 0 d{} 0\n", q % 8, (q + 1) % 8)).collect();
    file("qrels/qrels.txt", judged);
    file("qrels/queries.tsv", (0..60).map(|q| format!("q{q}\tred shoes number {q}\n")).collect());
    let labels: String = (0..60)
        .map(|q| format!("{q}\t{q}\t{}\tExact\n{}\t{q}\t{}\tIrrelevant\n", q % 8, q + 100, (q + 1) % 8))
        .collect();
    file("wands/label.csv", format!("id\tquery_id\tproduct_id\tlabel\n{labels}0\t1\t7\tPartial\n"));
    file(
        "wands/query.csv",
        "query_id\tquery\tquery_class\n".to_string()
            + &(0..60).map(|q| format!("{q}\tsalon chair {q}\tChairs\n")).collect::<String>(),
    );
    file(
        "wands/product.csv",
        "product_id\tproduct_name\tproduct_description\n".to_string()
            + &items(|i| format!("{i}\t\"{} 24\"\" wide\"\t\"two\nlines\"", title(i))),
    );
    let event = |u, i, k: usize| {
        let common = format!(
            "\"client_id\": \"c{u}\", \"query_id\": \"q{i}\", \"timestamp\": \"2024-05-01T12:00:{k:02}.5Z\""
        );
        let object = format!(
            "\"event_attributes\": {{\"object\": {{\"object_id\": \"p{i}\", \"internal_id\": \"1\"}}, \"position\": {{\"ordinal\": 1}}}}"
        );
        format!(
            "{{\"action_name\": \"search\", {common}, \"event_attributes\": {{}}}}\n{{\"action_name\": \"click\", {common}, {object}}}\n{{\"action_name\": \"add_to_cart\", {common}, {object}}}"
        )
    };
    file("ubi/ubi_events.ndjson", each(event));
    file(
        "ubi/ubi_queries.ndjson",
        items(|i| {
            format!(
                "{{\"query_id\": \"q{i}\", \"user_query\": \"find {i}\", \"query_response_hit_ids\": [\"p{i}\"]}}"
            )
        }),
    );
}

/// Text in ISO 8859-1.
fn encoding(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
}

/// The commands below a heading of docs/data.md, each in words.
fn commands(heading: &str) -> Vec<Vec<String>> {
    let document = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/data.md")).unwrap();
    let section = document.split(heading).nth(1).unwrap();
    let script = section.split("```sh\n").nth(1).unwrap().split("```").next().unwrap().replace("\\\n", " ");
    let words = |line: &str| line.split_whitespace().map(|w| w.trim_matches('\'').to_string()).collect();
    script.lines().filter(|l| l.starts_with("gems-engine ")).map(words).collect()
}

#[test]
fn the_published_logs_go_in_by_one_command_each() {
    let dir = tempfile::tempdir().unwrap();
    published(dir.path());
    let all = commands("### Published logs");
    assert!(all.len() >= 17, "{}", all.len());
    let mut cards = BTreeMap::new();
    for words in all {
        let mut command = engine();
        let done = command.current_dir(dir.path()).args(&words[1..]).arg("--json").assert();
        let output = done.get_output();
        assert!(output.status.success(), "{words:?}\n{}", String::from_utf8_lossy(&output.stderr));
        let out: Value = serde_json::from_slice(&output.stdout).unwrap();
        let name = out["out"].as_str().unwrap().trim_start_matches("data/").to_string();
        cards.insert(name, out["card"].clone());
    }
    for (name, card) in &cards {
        let by_query = ["qrels", "wands"].contains(&name.as_str());
        assert_eq!(card["core"]["users_left"], if by_query { 60 } else { 8 }, "{name}");
        assert_eq!(card["items"], 8, "{name}");
        let untitled = ["sasrec", "steam-200k", "retailrocket", "qrels", "ubi"].contains(&name.as_str());
        assert_eq!(card["items_with_text"], if untitled { 0 } else { 8 }, "{name}");
        assert_eq!(card["read"]["bad"].as_object().unwrap().len(), usize::from(name == "steam"), "{name}");
    }
    let rows = |name: &str, split: &str| -> Vec<Value> {
        let text = fs::read_to_string(dir.path().join(format!("data/{name}/{split}.jsonl"))).unwrap();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    };
    // The last item of user u is u + 7, after the seven before it.
    for name in ["recbole", "ml-100k", "ml-1m", "letter", "diginetica", "anime", "goodbooks", "steam"] {
        let test = rows(name, "test");
        assert_eq!(test.len(), 8, "{name}");
        for row in test {
            let user: usize = row["user"].as_str().unwrap().trim_start_matches("Café ").parse().unwrap();
            assert_eq!(row["target"], serde_json::json!([((user + 7) % 8).to_string()]), "{name}");
            let past: Vec<String> = (0..7).map(|k| ((user + k) % 8).to_string()).collect();
            assert_eq!(row["history"], serde_json::json!(past), "{name}");
        }
    }
    let text = |name: &str, item: &str| {
        let row = rows(name, "items").into_iter().find(|r| r["item"] == item).unwrap();
        row["text"].as_str().unwrap().to_string()
    };
    assert_eq!(text("ml-100k", "3"), "Misérables, Les (1995)");
    assert_eq!(text("ml-1m", "2"), "Title 2: A \"Film\" (1995)");
    assert_eq!(text("ml-latest", "2"), "Title 2, The (1995)");
    assert_eq!(text("bookcrossing", "002X"), "The \"Title 2\" &amp; Éclair");
    assert_eq!(text("wands", "4"), "Title 4 24\" wide");
    assert_eq!(text("diginetica", "4"), "4,5");
    assert_eq!(
        rows("qrels", "test")
            .iter()
            .chain(&rows("qrels", "train"))
            .filter(|r| r["query"].as_str().unwrap().starts_with("red shoes number "))
            .count(),
        cards["qrels"]["written"]["rows"]["test"]["search"].as_u64().unwrap() as usize
            + cards["qrels"]["written"]["rows"]["train"]["search"].as_u64().unwrap() as usize
    );
    assert_eq!(rows("ml-latest", "test").iter().filter(|r| r["query"].is_string()).count(), 8);
    // As MiniOneRec has it: the history of the log, the first item too.
    assert!(rows("amazon18", "test").iter().all(|r| r["history"].as_array().unwrap().len() == 7));
    assert_eq!(cards["ubi"]["read"]["dropped"]["not wanted and without an item"], 64);
    assert!(rows("ubi", "test").iter().all(|r| r["query"].as_str().unwrap().starts_with("find ")));
    let notes = |name: &str| cards[name]["warnings"].to_string();
    assert!(notes("sasrec").contains("the order of the rows"), "{}", notes("sasrec"));
    assert!(notes("recbole").contains("ml-100k.user") && notes("recbole").contains("`user_id`"));
    assert_eq!(
        cards["ml-1m"]["read"]["files"],
        serde_json::json!({"text separated by `::`, no header, windows-1252": 2})
    );
}

#[test]
fn items_and_their_titles_become_tasks_and_are_learned() {
    let dir = tempfile::tempdir().unwrap();
    published(dir.path());
    let prepare = |format: &str| {
        let mut command = engine();
        command.current_dir(dir.path()).args([
            "prepare",
            "events",
            "ml-1m/ratings.dat",
            "--encoding",
            "latin1",
        ]);
        command.args(["--columns", "user=1,item=2,label=3,timestamp=4", "--items", "ml-1m/movies.dat"]);
        command.args(["--item-columns", "item=1,text=2", "--align", "title-to-item,item-to-title"]);
        command.args(["--format", format, "--out", format]).assert().success();
        gems_engine::data::Dataset::load(&dir.path().join(format), &Default::default()).unwrap()
    };
    let (json, parquet) = (prepare("jsonl"), prepare("parquet"));
    assert_eq!((&json.train, &json.valid, &json.test), (&parquet.train, &parquet.valid, &parquet.test));
    let of = |task: &str| {
        let number = json.task(task).unwrap();
        json.train.records.iter().filter(move |r| r.task == number).collect::<Vec<_>>()
    };
    let (to_item, to_title) = (of("title-to-item"), of("item-to-title"));
    assert_eq!((to_item.len(), to_title.len()), (8, 8));
    for item in 0..8u32 {
        let title = json.items.text(item).unwrap();
        assert!(
            to_item
                .iter()
                .any(|r| r.query.as_deref() == Some(title) && *r.target == [item] && r.history.is_empty())
        );
        assert!(
            to_title
                .iter()
                .any(|r| r.answer.as_deref() == Some(title) && *r.history == [item] && r.target.is_empty())
        );
    }
    assert!(json.test.records.iter().all(|r| r.answer.is_none()));
    // A text that answers is what the tokenizer makes of it, behind the prompt, with its end.
    let settings = ["gems.rank=4", "train.batch=8", "data.prompts=cue", "data.item_token=<new_{}>"];
    let mut command = engine();
    command.args(["train", "--json", "--device", "cpu", "--steps", "3", "--model"]);
    command.arg(crate::cli::golden_model("llama_tied")).arg("--data").arg(dir.path().join("jsonl"));
    command.arg("--out").arg(dir.path().join("run")).args(settings.iter().flat_map(|s| ["--set", *s]));
    command.args(["--set", "null_space.side=none", "--set", "null_space.item_rows=0"]);
    let done = command.assert().success();
    let last: Value = serde_json::from_slice(
        done.get_output().stdout.split(|b| *b == b'\n').rfind(|l| !l.is_empty()).unwrap(),
    )
    .unwrap();
    assert!(last["after"]["rec"]["ndcg@10"].is_number(), "{last}");
    let metrics = fs::read_to_string(dir.path().join("run/metrics.jsonl")).unwrap();
    assert!(metrics.contains("loss.item-to-title") || metrics.contains("loss.title-to-item"), "{metrics}");
}
