//! What the README and the book tell a reader to type, to open and to look at is there.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

const MAKEFILE: &str = include_str!("../Makefile");

struct Page {
    path: PathBuf,
    text: String,
}

impl Page {
    /// The name in findings.
    fn name(&self) -> String {
        self.path.strip_prefix(root()).unwrap_or(&self.path).display().to_string()
    }

    /// The blocks of this language.
    fn blocks(&self, language: &str) -> Vec<String> {
        let mut blocks = Vec::new();
        let mut lines = self.text.lines();
        while let Some(line) = lines.next() {
            let Some(fence) = line.strip_prefix("```") else { continue };
            let block: Vec<_> =
                lines.by_ref().take_while(|line| !line.starts_with("```")).collect();
            if fence == language {
                blocks.push(block.join("\n"));
            }
        }
        blocks
    }

    /// The text outside of blocks.
    fn prose(&self) -> String {
        let parts = self.text.split("\n```").enumerate();
        parts.filter(|(index, _)| index % 2 == 0).map(|(_, part)| part).collect()
    }

    /// Its headings, as links name them.
    fn anchors(&self) -> BTreeSet<String> {
        let prose = self.prose();
        let headings = prose.lines().filter_map(|line| {
            let heading = line.trim_start_matches('#');
            (heading.len() < line.len()).then(|| heading.trim().to_lowercase())
        });
        let named = |heading: String| -> String {
            let kept = heading.chars().filter(|it| it.is_alphanumeric() || " -_".contains(*it));
            kept.map(|it| if it == ' ' { '-' } else { it }).collect()
        };
        headings.map(named).collect()
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The README, what lies beside it, and the book.
fn pages() -> Vec<Page> {
    let beside = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md"];
    let mut paths: Vec<PathBuf> = beside.iter().map(|name| root().join(name)).collect();
    let book = fs::read_dir(root().join("docs/src")).unwrap();
    let is_page = |path: &PathBuf| path.extension().is_some_and(|it| it == "md");
    paths.extend(book.map(|entry| entry.unwrap().path()).filter(is_page));
    let pages = paths.into_iter().filter_map(|path| {
        let text = fs::read_to_string(&path).ok()?;
        Some(Page { path, text })
    });
    pages.collect()
}

/// The commands of a block for a shell, without comments, those over several lines in one, and a word in
/// place of what another command gives.
fn commands(block: &str) -> Vec<Vec<String>> {
    let mut whole = block.replace("\\\n", " ");
    while let Some((before, rest)) = whole.split_once("\"$(") {
        let after = rest.split_once(")\"").map_or("", |(_, after)| after);
        whole = format!("{before}given{after}");
    }
    let lines = whole.lines().map(|line| line.split(" #").next().unwrap_or_default());
    lines
        .map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .filter(|words| !words.is_empty())
        .collect()
}

fn all_commands(program: &str) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    for page in pages() {
        for block in page.blocks("sh") {
            let these = commands(&block).into_iter().filter(|words| words[0] == program);
            found.extend(these.map(|words| (page.name(), words)));
        }
    }
    found
}

#[test]
fn every_command_line_of_the_program_is_one_that_it_takes() {
    let lines = all_commands("nereid");
    assert!(lines.len() > 5, "{lines:?}");
    let mut wrong = Vec::new();
    for (page, words) in lines {
        match nereid::cli::command().try_get_matches_from(&words) {
            Ok(_) => {}
            Err(error) if !error.use_stderr() => {}
            Err(error) => wrong.push(format!("{page}: {}: {error}", words.join(" "))),
        }
    }
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn every_target_of_make_is_in_the_makefile() {
    let is_there = |target: &str| {
        MAKEFILE.lines().any(|line| line.strip_prefix(target).is_some_and(|it| it.starts_with(':')))
    };
    let mut wrong = Vec::new();
    for (page, words) in all_commands("make") {
        let targets = words[1..].iter().filter(|it| !it.contains('=') && !it.starts_with('-'));
        wrong.extend(targets.filter(|it| !is_there(it)).map(|it| format!("{page}: make {it}")));
    }
    // In the text too.
    for page in pages() {
        let prose = page.prose();
        let named = prose.split("`make ").skip(1).filter_map(|it| it.split(['`', ' ']).next());
        let named = named.filter(|it| !it.contains('=') && !it.is_empty());
        wrong.extend(
            named.filter(|it| !is_there(it)).map(|it| format!("{}: make {it}", page.name())),
        );
    }
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn every_link_leads_somewhere() {
    let pages = pages();
    let mut links = 0;
    let mut wrong = Vec::new();
    for page in &pages {
        let prose = page.prose();
        for target in prose.split("](").skip(1).filter_map(|it| it.split(')').next()) {
            if target.contains("://") {
                continue;
            }
            links += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = match file {
                "" => page.path.clone(),
                _ => page.path.parent().unwrap_or(root()).join(file),
            };
            let Ok(path) = path.canonicalize() else {
                wrong.push(format!("{}: {target}: there is no such file", page.name()));
                continue;
            };
            let is_at = |it: &&Page| it.path.canonicalize().is_ok_and(|it| it == path);
            let linked = pages.iter().find(is_at);
            if !anchor.is_empty() && !linked.is_some_and(|it| it.anchors().contains(anchor)) {
                wrong.push(format!("{}: {target}: there is no such heading", page.name()));
            }
        }
    }
    assert!(links > 40, "{links} links");
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn the_book_lists_all_of_its_pages() {
    let summary = fs::read_to_string(root().join("docs/src/SUMMARY.md")).unwrap();
    let book =
        pages().into_iter().filter(|page| page.path.parent().is_some_and(|it| it.ends_with("src")));
    let names = book.filter_map(|page| Some(page.path.file_name()?.to_str()?.to_owned()));
    let absent: Vec<_> = names
        .filter(|name| name != "SUMMARY.md" && !summary.contains(&format!("({name})")))
        .collect();
    assert_eq!(absent, [""; 0]);
}

/// What reads as the path of a source, `serving/batch.rs`, is one: of the project, of `src`, or of the
/// folder of the page.
#[test]
fn every_file_that_is_named_is_there() {
    let endings = [".rs", ".py", ".sh", ".cu", ".proto", ".toml"];
    let mut seen = 0;
    let mut wrong = Vec::new();
    for page in pages() {
        let prose = page.prose();
        for name in prose.split('`').skip(1).step_by(2) {
            let is_path = name.contains('/') && endings.iter().any(|it| name.ends_with(it));
            // `NAME/model.py` and `1/model.py` are examples of a user's.
            let is_example = name.starts_with(|it: char| it.is_ascii_digit() || it == '/')
                || name.contains([' ', '<', '{', '*', 'N']);
            if !is_path || is_example {
                continue;
            }
            seen += 1;
            let places =
                [root().to_owned(), root().join("src"), page.path.parent().unwrap().to_owned()];
            if !places.iter().any(|place| place.join(name).exists()) {
                wrong.push(format!("{}: {name}", page.name()));
            }
        }
    }
    assert!(seen > 10, "{seen} paths");
    assert_eq!(wrong, [""; 0]);
}
