//! The maps of the house are true: modules use those above them, files do not use each other in circles, and what a
//! document names is there. All of it is read from the text of the sources.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Folders of the repository that have something to read or to name.
const FOLDERS: [&str; 8] = ["src", "tests", "docs", "benches", "kernels", "scripts", "assets", ".ci"];

/// Files below `folder` whose names end in one of `endings`, as paths from the root.
fn files(folder: &str, endings: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root().join(folder)).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        if entry.file_type().unwrap().is_dir() {
            let walked = if folder.is_empty() { FOLDERS.contains(&&*name) } else { !name.starts_with('.') };
            if walked && path != "tests/golden" {
                found.extend(files(&path, endings));
            }
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(path);
        }
    }
    found.sort();
    found
}

// ---- the graph of the sources -------------------------------------------------------------------

/// Words, `::` and single signs of a source, without comments and literals.
fn words(source: &str) -> Vec<String> {
    let (mut all, mut rest): (Vec<String>, &str) = (Vec::new(), source);
    let beyond = |text: &str, end: &str| text.find(end).map_or(text.len(), |at| at + end.len());
    while let Some(first) = rest.chars().next() {
        let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let raw = rest.strip_prefix('r').map(|r| r.split_once('"').map_or("", |r| r.0));
        let length = match first {
            _ if rest.starts_with("//") => beyond(rest, "\n"),
            _ if rest.starts_with("/*") => beyond(rest, "*/"),
            'r' if raw
                .is_some_and(|r| r.bytes().all(|b| b == b'#') && rest[1 + r.len()..].starts_with('"')) =>
            {
                let hashes = raw.map_or(0, str::len);
                2 + hashes + beyond(&rest[2 + hashes..], &format!("\"{}", "#".repeat(hashes)))
            }
            '"' => {
                let mut escaped = false;
                let end = rest[1..].find(|c| {
                    let ends = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    ends
                });
                end.map_or(rest.len(), |end| end + 2)
            }
            '\'' if rest[1..].starts_with('\\') => 3 + rest[3..].find('\'').map_or(0, |end| end + 1),
            '\'' if rest.chars().nth(2) == Some('\'') => rest.chars().take(3).map(char::len_utf8).sum(),
            _ if word > 0 => word,
            _ if rest.starts_with("::") => 2,
            _ => first.len_utf8(),
        };
        let token = &rest[..length];
        if !first.is_whitespace() && !"/\"'".contains(first) && !token.contains('"') {
            all.push(token.to_string());
        }
        rest = &rest[length..];
    }
    all
}

type Module = Vec<String>;

/// A path in a source, as it is written; `name`: what it is called there.
struct Named {
    exported: bool,
    name: String,
    path: Vec<String>,
}

struct Source {
    words: Vec<String>,
    names: Vec<Named>,
}

/// The paths of a `use`, branches multiplied out: those of `a::{b, c::d}` are a b and a c d.
fn tree(words: &[String], prefix: &[String], exported: bool, into: &mut Vec<Named>) {
    let (mut depth, mut from) = (0, 0);
    for at in 0..=words.len() {
        match words.get(at).map(String::as_str) {
            Some("{") => depth += 1,
            Some("}") => depth -= 1,
            None | Some(",") if depth == 0 => {
                let branch = &words[from..at];
                from = at + 1;
                let simple = branch.iter().position(|w| w == "{" || w == "as").unwrap_or(branch.len());
                let own = branch[..simple].iter().filter(|w| *w != "::").cloned();
                let path: Vec<String> = prefix.iter().cloned().chain(own).collect();
                if branch.get(simple).is_some_and(|w| w == "{") {
                    tree(&branch[simple + 1..branch.len() - 1], &path, exported, into);
                } else if let (Some(name), false) = (branch.last().or(path.last()), branch.is_empty()) {
                    into.push(Named { exported, name: name.clone(), path });
                }
            }
            _ => {}
        }
    }
}

impl Source {
    fn new(text: &str, children: &BTreeSet<String>) -> Self {
        let (words, mut names, mut at) = (words(text), Vec::new(), 0);
        while at < words.len() {
            let before = at.checked_sub(1).map_or("", |b| words[b].as_str());
            let starts =
                ["crate", "super", "self"].contains(&words[at].as_str()) || children.contains(&words[at]);
            let end = if words[at] == "use" && words.get(at + 1).is_some_and(|w| w != "<") {
                let end = at + words[at..].iter().position(|w| w == ";").expect("a use ends");
                let exported = before == "pub" || before == ")";
                tree(&words[at + 1..end], &[], exported, &mut names);
                end
            } else if starts && before != "in" && before != "::" && before != "mod" && before != "." {
                let tail = words[at + 1..].chunks(2).take_while(|w| w.len() == 2 && w[0] == "::");
                let tail: Vec<String> = tail.map(|w| w[1].clone()).collect();
                let end = at + 1 + 2 * tail.len();
                let path: Vec<String> = std::iter::once(words[at].clone()).chain(tail).collect();
                if path.len() > 1 {
                    names.push(Named { exported: false, name: String::new(), path });
                }
                end
            } else {
                at + 1
            };
            at = end;
        }
        Self { words, names }
    }
    fn defines(&self, name: &str) -> bool {
        const KINDS: [&str; 8] = ["struct", "enum", "trait", "fn", "type", "const", "static", "mod"];
        self.words.windows(2).any(|w| KINDS.contains(&w[0].as_str()) && w[1] == name)
    }
}

struct Graph {
    sources: BTreeMap<Module, Source>,
}

impl Graph {
    fn read() -> Self {
        let module = |path: &str| -> Module {
            let path = path.strip_prefix("src/").unwrap().strip_suffix(".rs").unwrap();
            let parts = path.split('/').filter(|part| *part != "mod" && *part != "lib");
            parts.map(str::to_string).collect()
        };
        let paths = files("src", &[".rs"]).into_iter().filter(|path| path != "src/main.rs");
        let modules: BTreeMap<Module, String> = paths.map(|path| (module(&path), path)).collect();
        let children = |of: &Module| {
            let below = modules.keys().filter(|m| m.len() == of.len() + 1 && m.starts_with(of));
            below.filter_map(|m| m.last().cloned()).collect::<BTreeSet<String>>()
        };
        let read = |(m, path): (&Module, &String)| (m.clone(), Source::new(&text(path), &children(m)));
        Self { sources: modules.iter().map(read).collect() }
    }

    /// The file that defines what `path` names in `from`; what a module exports from another is followed.
    fn definer(&self, from: &Module, path: &[String], depth: usize) -> Option<Module> {
        let (mut at, mut rest) = match path.first()?.as_str() {
            "crate" => (Vec::new(), &path[1..]),
            "self" => (from.clone(), &path[1..]),
            "super" => {
                let up = path.iter().take_while(|p| *p == "super").count();
                (from[..from.len().saturating_sub(up)].to_vec(), &path[up..])
            }
            _ => (from.clone(), path),
        };
        while let Some(next) = rest.first() {
            let below: Module = at.iter().chain([next]).cloned().collect();
            if !self.sources.contains_key(&below) {
                break;
            }
            (at, rest) = (below, &rest[1..]);
        }
        if rest.len() == path.len() {
            return None; // of another crate
        }
        let (source, Some(item)) = (self.sources.get(&at)?, rest.first().filter(|item| *item != "*")) else {
            return Some(at);
        };
        let exported = source.names.iter().filter(|n| n.exported && depth < 8);
        if let Some(name) = exported.clone().find(|n| n.name == *item) {
            return self.definer(&at, &name.path, depth + 1).or(Some(at));
        }
        for all in exported.filter(|n| n.name == "*") {
            let path: Vec<String> = all.path.iter().filter(|p| *p != "*").chain([item]).cloned().collect();
            let found = self.definer(&at, &path, depth + 1);
            if let Some(m) = found.filter(|m| self.sources.get(m).is_some_and(|s| s.defines(item))) {
                return Some(m);
            }
        }
        Some(at)
    }

    /// Who uses whom, and by which path. A file may use the modules that it is a part of: they are not counted; nor is
    /// what is exported from another file.
    fn uses(&self) -> BTreeMap<&Module, BTreeMap<Module, String>> {
        let of = |(from, source): (&'_ Module, &'_ Source)| {
            let inner = source.names.iter().filter(|n| !n.exported);
            let all = inner.filter_map(|n| Some((self.definer(from, &n.path, 0)?, n.path.join("::"))));
            all.filter(|(to, _)| !from.starts_with(to)).collect()
        };
        self.sources.iter().map(|(from, source)| (from, of((from, source)))).collect()
    }
}

fn top_modules() -> Vec<String> {
    let lib = text("src/lib.rs");
    lib.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';')).map(str::to_string).collect()
}

#[test]
fn modules_use_those_above_them() {
    let order = top_modules();
    let graph = Graph::read();
    let place = |m: &Module| order.iter().position(|o| Some(o) == m.first());
    let mut wrong = Vec::new();
    for (from, uses) in graph.uses() {
        for (to, path) in uses {
            if place(&to) > place(from) {
                wrong.push(format!("{} uses {path}", from.join("::")));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "src/lib.rs lists {order:?}, each of which uses those before it only; but\n{wrong:#?}"
    );
    let map = text("docs/architecture.md");
    let listed: Vec<String> = (map.lines())
        .filter_map(|line| line.strip_prefix("| `")?.split_once(" | "))
        .take_while(|(first, _)| !first.contains('.'))
        .flat_map(|(first, _)| {
            first.split(['`', ',', ' ', '/']).filter(|w| !w.is_empty()).map(str::to_string)
        })
        .collect();
    assert_eq!(listed, order, "docs/architecture.md lists the modules of src/lib.rs in its order");
}

/// The shortest way from a file back to itself.
fn circle(start: &str, uses: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    let (mut ways, mut seen) = (VecDeque::from([vec![start.to_string()]]), BTreeSet::new());
    while let Some(way) = ways.pop_front() {
        for next in way.last().and_then(|last| uses.get(last)).into_iter().flatten() {
            let longer = [&way[..], std::slice::from_ref(next)].concat();
            if next == start {
                return Some(longer);
            }
            if seen.insert(next) {
                ways.push_back(longer);
            }
        }
    }
    None
}

#[test]
fn files_do_not_use_each_other_in_circles() {
    let graph = Graph::read();
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (from, to) in graph.uses() {
        uses.insert(from.join("::"), to.keys().map(|to| to.join("::")).collect());
    }
    // Each of them is told once, from its first file on.
    let circles =
        uses.keys().filter_map(|from| circle(from, &uses)).filter(|way| way.iter().min() == way.first());
    let circles: Vec<String> = circles.map(|way| way.join(" -> ")).collect();
    assert!(circles.is_empty(), "{circles:#?}");
}

// ---- what documents and sources name ------------------------------------------------------------

/// Whether a path with stars (and `<name>` for one) leads somewhere.
fn exists(path: &str) -> bool {
    let mut found = vec![root()];
    for part in path.trim_end_matches('/').split('/') {
        let pieces: Vec<&str> = part.split('*').collect();
        found = if pieces.len() == 1 {
            found.into_iter().map(|folder| folder.join(part)).filter(|path| path.exists()).collect()
        } else {
            let entries = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten();
            let fits = |path: &PathBuf| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with(pieces[0]) && name.ends_with(pieces[pieces.len() - 1])
            };
            found.into_iter().flat_map(entries).map(|entry| entry.path()).filter(fits).collect()
        };
    }
    !found.is_empty()
}

/// Words that may be paths from the root: `tests/suite/*.rs`, `kernels/<name>.cu`.
fn paths(text: &str) -> Vec<String> {
    let split = |c: char| c.is_whitespace() || "`()[]{},;|\"'".contains(c);
    let words = text.split(split).map(|word| word.trim_end_matches(['.', ':', '?', '!']));
    let words = words.map(|word| word.split_once(['#', ':']).map_or(word, |w| w.0));
    let inside = |word: &&str| {
        word.split_once('/').is_some_and(|(first, rest)| FOLDERS.contains(&first) && !rest.is_empty())
    };
    let star = |word: &str| match (word.find('<'), word.find('>')) {
        (Some(from), Some(to)) if from < to => format!("{}*{}", &word[..from], &word[to + 1..]),
        _ => word.to_string(),
    };
    words.filter(inside).map(star).collect()
}

/// Targets of Markdown's relative links.
fn links(text: &str) -> Vec<&str> {
    let targets = text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0));
    let relative = targets.filter(|target| !target.contains("://") && !target.starts_with(['#', '<']));
    relative.map(|target| target.split('#').next().unwrap_or(target)).collect()
}

/// Words after `command `, in code.
fn after<'a>(text: &'a str, command: &str) -> Vec<&'a str> {
    let name = |rest: &'a str| rest.split(|c: char| !c.is_alphanumeric() && c != '-' && c != '_').next();
    text.match_indices(command).filter_map(|(at, _)| name(&text[at + command.len()..])).collect()
}

#[test]
fn what_documents_name_is_there() {
    let mut missing = Vec::new();
    let recipes: Vec<String> = (text("justfile").lines())
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()) && line.contains(':'))
        .filter_map(|line| line.split([' ', ':']).next().map(str::to_string))
        .collect();
    let manifest = text("Cargo.toml");
    for document in files("", &[".md"]) {
        let (text, folder) = (text(&document), Path::new(&document).parent().unwrap().to_path_buf());
        let mut miss = |what: &str| missing.push(format!("{document}: {what}"));
        links(&text).into_iter().filter(|l| !root().join(&folder).join(l).exists()).for_each(&mut miss);
        paths(&text).iter().filter(|path| !exists(path)).for_each(|path| miss(path));
        // In documents a kernel's file goes by its name.
        let kernels = text.split('`').filter(|w| w.ends_with(".cu") && !w.contains(['/', ' ', '*']));
        kernels.filter(|name| !exists(&format!("kernels/{name}"))).for_each(&mut miss);
        let just = after(&text, "`just ").into_iter().chain(after(&text, "\njust "));
        just.filter(|name| !recipes.iter().any(|r| r == name)).for_each(|name| miss(&format!("just {name}")));
        for kind in ["bench", "example", "test"] {
            let named = |name: &&str| !manifest.contains(&format!("[[{kind}]]\nname = \"{name}\""));
            let names = after(&text, &format!(" --{kind} "));
            names.into_iter().filter(named).for_each(|name| miss(&format!("--{kind} {name}")));
        }
    }
    const SOURCES: [&str; 10] =
        [".rs", ".cu", ".cuh", ".cpp", ".h", ".sh", ".py", "Cargo.toml", "justfile", "run"];
    for source in files("", &SOURCES).into_iter().filter(|path| path != "tests/suite/house.rs") {
        let named = paths(&text(&source)).into_iter().filter(|path| {
            let ending = path.rsplit('/').next().and_then(|name| name.split_once('.'));
            ending.is_some_and(|(stem, _)| !stem.is_empty() && !path.contains(['$', '\\']))
        });
        missing.extend(named.filter(|path| !exists(path)).map(|path| format!("{source}: {path}")));
    }
    assert!(missing.is_empty(), "named, but not there:\n{}", missing.join("\n"));
}

// ---- notices --------------------------------------------------------------------------------------

#[test]
fn every_crate_that_is_used_has_its_notice() {
    let (lock, notices, manifest) =
        (text("Cargo.lock"), text("assets/third-party-licences.txt"), text("Cargo.toml"));
    let locked: BTreeSet<String> = (lock.split("[[package]]\n").skip(1))
        .map(|package| {
            let value = |key: &str| package.split(&format!("{key} = \"")).nth(1)?.split('"').next();
            format!("{} {}", value("name").unwrap(), value("version").unwrap())
        })
        .collect();
    // `name version (licence)`, and what stands before the bracket.
    let named: BTreeSet<&str> = (notices.lines())
        .filter_map(|line| line.split_once(" (").map(|(crate_, _)| crate_))
        .filter(|crate_| locked.contains(*crate_))
        .collect();
    let used = manifest.split("[dependencies]\n").nth(1).unwrap().split("\n[").next().unwrap();
    let used = used.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name);
    let missing: Vec<&str> =
        used.filter(|name| !named.iter().any(|n| n.split(' ').next() == Some(name))).collect();
    assert!(missing.is_empty(), "without a notice (scripts/licences.py writes them): {missing:?}");
}

// ---- unsafe ---------------------------------------------------------------------------------------

#[test]
fn the_table_of_unsafe_is_true() {
    let count = |path: &String| words(&text(path)).iter().filter(|word| *word == "unsafe").count();
    let found: BTreeMap<String, usize> = files("src", &[".rs"])
        .into_iter()
        .map(|path| (path.clone(), count(&path)))
        .filter(|(_, n)| *n > 0)
        .collect();
    let table = text("docs/security.md");
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        Some((cells.next()?.trim_end_matches('`').to_string(), cells.next()?.parse().ok()?))
    };
    let listed: BTreeMap<String, usize> = table.lines().filter_map(row).collect();
    assert_eq!(found, listed, "docs/security.md lists every `unsafe` by file");
}
