//! The house style, as far as a machine can see it. A finding names the file, the line and the rule.

use std::{fs, path::Path, process::Command};

/// The rooms, from the bottom to the top: each may use those before it. `proto` is generated.
const ROOMS: [&str; 12] = [
    "proto",
    "inference",
    "observe",
    "runtime",
    "repository",
    "memory",
    "device",
    "backend",
    "scheduler",
    "serving",
    "ingress",
    "cli",
];
/// Rooms that deal with what the compiler cannot check.
const UNSAFE_ROOMS: [&str; 4] = ["runtime", "memory", "backend", "device"];
const LINES_MAX: usize = 700;

struct Source {
    path: String,
    text: String,
}

/// The text files under version control, generated and foreign ones left out.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let listing = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .current_dir(root)
        .output()
        .expect("git lists the files");
    assert!(listing.status.success(), "git ls-files failed");
    String::from_utf8(listing.stdout)
        .expect("file names in UTF-8")
        .split_terminator('\0')
        .filter(|path| !path.ends_with(".lock") && !path.starts_with("fuzz/seeds/"))
        .filter(|path| !path.ends_with(".json") && *path != "LICENSE")
        // What is not text is not read; what was deleted but not yet committed is not there.
        .filter_map(|path| {
            let text = fs::read_to_string(root.join(path)).ok()?;
            Some(Source { path: path.to_owned(), text })
        })
        .collect()
}

fn rust_sources() -> Vec<Source> {
    let mut all = sources();
    all.retain(|source| source.path.starts_with("src/") && source.path.ends_with(".rs"));
    assert!(all.len() > 50, "the sources were not found");
    all
}

fn room(path: &str) -> &str {
    let inside = path.strip_prefix("src/").unwrap_or(path);
    inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs")
}

/// The lines of a source with their numbers, comments left out.
fn code(source: &Source) -> impl Iterator<Item = (usize, &str)> {
    source.text.lines().enumerate().filter_map(|(index, line)| {
        let line = line.split("//").next().unwrap_or_default();
        (!line.trim().is_empty()).then_some((index + 1, line))
    })
}

/// Whether `line` holds `word` by itself, not as a part of a longer name.
fn has_word(line: &str, word: &str) -> bool {
    let in_name = |character: char| character.is_alphanumeric() || character == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].ends_with(in_name) && !line[at + word.len()..].starts_with(in_name)
    })
}

/// The rooms that a source names by `crate::room` or in `use crate::{room…, …}`.
fn rooms_named(source: &Source) -> Vec<(usize, String)> {
    let mut named = Vec::new();
    // The nesting of braces since a `crate::{`; `None` outside one.
    let mut depth: Option<usize> = None;
    for (number, line) in code(source) {
        let mut rest = line;
        loop {
            if let Some(nesting) = depth {
                let end = rest.find(['{', '}', ',']);
                let (item, separator) = match end {
                    Some(at) => (&rest[..at], &rest[at..=at]),
                    None => (rest, ""),
                };
                let first = item.trim().split("::").next().unwrap_or_default().trim();
                if nesting == 1 && !first.is_empty() {
                    named.push((number, first.to_owned()));
                }
                depth = match separator {
                    "{" => Some(nesting + 1),
                    "}" if nesting == 1 => None,
                    "}" => Some(nesting - 1),
                    _ => Some(nesting),
                };
                match end {
                    Some(at) => rest = &rest[at + 1..],
                    None => break,
                }
            } else if let Some(at) = rest.find("crate::") {
                let outside = at > 0 && rest[..at].ends_with('$');
                rest = &rest[at + "crate::".len()..];
                if rest.starts_with('{') {
                    depth = Some(1);
                    rest = &rest[1..];
                } else if !outside {
                    let end = rest.find(|next: char| !next.is_alphanumeric() && next != '_');
                    named.push((number, rest[..end.unwrap_or(rest.len())].to_owned()));
                }
            } else {
                break;
            }
        }
    }
    named
}

fn report(findings: &[String]) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

#[test]
fn files_can_be_read_in_one_sitting() {
    let long = rust_sources().into_iter().filter_map(|source| {
        let lines = source.text.lines().count();
        (lines > LINES_MAX)
            .then(|| format!("{}: {lines} lines, at most {LINES_MAX} are wanted", source.path))
    });
    report(&long.collect::<Vec<_>>());
}

#[test]
fn every_room_says_what_it_is_for() {
    let silent = rust_sources().into_iter().filter_map(|source| {
        let is_room = source.path.ends_with("/mod.rs") && !source.path.contains("/tests/");
        (is_room && !source.text.starts_with("//! "))
            .then(|| format!("{}: does not begin with a paragraph on the room (//!)", source.path))
    });
    report(&silent.collect::<Vec<_>>());
}

#[test]
fn nothing_is_left_half_done() {
    // Written so that this file does not hold what it looks for.
    let words = ["to\x64o!", "unimplement\x65d!", "db\x67!", "FIX\x4dE", "TO\x44O", "XX\x58"];
    let mut findings = Vec::new();
    for source in sources() {
        for (index, line) in source.text.lines().enumerate() {
            for word in words.iter().filter(|word| has_word(line, word)) {
                findings.push(format!("{}:{}: {word}", source.path, index + 1));
            }
        }
    }
    report(&findings);
}

#[test]
fn only_the_runtime_names_the_runtimes() {
    let mut findings = Vec::new();
    for source in rust_sources().iter().filter(|source| room(&source.path) != "runtime") {
        for (number, line) in code(source) {
            for name in ["glommio", "tokio"].iter().filter(|name| has_word(line, name)) {
                findings.push(format!(
                    "{}:{number}: names {name}, which only src/runtime may",
                    source.path
                ));
            }
        }
    }
    report(&findings);
}

#[test]
fn unsafe_code_stays_in_the_rooms_that_need_it() {
    let mut findings = Vec::new();
    for source in rust_sources().iter().filter(|it| !UNSAFE_ROOMS.contains(&room(&it.path))) {
        for (number, _) in code(source).filter(|(_, line)| has_word(line, "unsafe")) {
            findings.push(format!(
                "{}:{number}: unsafe code, which only {} may hold",
                source.path,
                UNSAFE_ROOMS.join(", ")
            ));
        }
    }
    report(&findings);
}

#[test]
fn imports_point_downwards() {
    let place = |name: &str| ROOMS.iter().position(|room| *room == name);
    let mut findings = Vec::new();
    for source in rust_sources() {
        let from = room(&source.path).to_owned();
        if ["lib", "main"].contains(&from.as_str()) {
            continue;
        }
        let Some(own) = place(&from) else {
            findings.push(format!("{}: '{from}' is not a room of this test's table", source.path));
            continue;
        };
        for (number, to) in rooms_named(&source) {
            if place(&to).is_some_and(|other| other > own) {
                findings.push(format!(
                    "{}:{number}: {from} names {to}, which lies above it",
                    source.path
                ));
            }
        }
    }
    report(&findings);
}

#[test]
fn the_text_is_clean() {
    let mut findings = Vec::new();
    for source in sources() {
        let markdown = source.path.ends_with(".md");
        for (index, line) in source.text.lines().enumerate() {
            let trailing = line.ends_with([' ', '\t', '\r']);
            if trailing && !(markdown && line.ends_with("  ")) {
                findings.push(format!("{}:{}: white space at the end", source.path, index + 1));
            }
            for folder in ["/home\x2f", "/root\x2f", "/work\x2f", "/Users\x2f"] {
                let at_start = |at: usize| {
                    !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-})/~".contains(c))
                };
                if line.match_indices(folder).any(|(at, _)| at_start(at)) {
                    findings.push(format!(
                        "{}:{}: a path of one machine ({folder})",
                        source.path,
                        index + 1
                    ));
                }
            }
        }
        if !source.text.is_empty() && !source.text.ends_with('\n') {
            findings.push(format!("{}: no end of line at the end", source.path));
        }
    }
    report(&findings);
}

#[test]
fn this_test_sees_what_it_is_to_see() {
    let source = |text: &str| Source { path: "src/x.rs".to_owned(), text: text.to_owned() };
    let named = |text: &str| {
        rooms_named(&source(text)).into_iter().map(|(_, name)| name).collect::<Vec<_>>()
    };
    assert_eq!(named("use crate::memory::Buffer;"), ["memory"]);
    assert_eq!(named("use crate::{\n    a::{B, c::D},\n    e::F,\n};\ng::H"), ["a", "e"]);
    assert_eq!(named("use crate::{a, b};\nlet x = crate::c::d();"), ["a", "b", "c"]);
    assert_eq!(named("// crate::a\nx // crate::b"), [""; 0]);
    assert!(has_word("a unsafe {", "unsafe"));
    assert!(!has_word("unsafe_op", "unsafe"));
    assert_eq!(room("src/ingress/http/mod.rs"), "ingress");
    assert_eq!(room("src/lib.rs"), "lib");
}
