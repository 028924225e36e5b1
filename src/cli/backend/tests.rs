use std::fs;

use tempfile::TempDir;

use super::*;
use crate::backend::pytorch;

/// Stands in for Python: `pip download` leaves a wheel or fails with the text of the file `failure`,
/// and unpacking the wheel gives the content of the folder `content`.
const STAND_IN: &str = r#"
here="$(dirname "$0")"
echo "$@" >> "$here/calls"
case "$1" in
-m)
    if [ -e "$here/failure" ]; then cat "$here/failure" >&2; exit 1; fi
    touch some.whl ;;
-c) cp -r "$here/content/." "$4" ;;
esac
"#;

const PACKAGED: Origin<'static> = Origin::Packages { gpu: false };
const FOR_GPUS: Origin<'static> = Origin::Packages { gpu: true };

struct Bed {
    folder: TempDir,
    directory: PathBuf,
}

impl Bed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("python"), STAND_IN).unwrap();
        let all = |package: &'static Package| [Some(package.sources), package.gpu_sources];
        let sources = PACKAGES.iter().flat_map(all).flatten().flatten();
        let kept = sources.flat_map(|source| source.kept);
        let mut kept: Vec<&str> = kept.map(|(path, _)| *path).collect();
        // What lies in a folder goes before the folder, which then is there.
        kept.sort_by_key(|path| std::cmp::Reverse(path.len()));
        for file in kept {
            let path = folder.path().join("content").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            if !path.exists() {
                fs::write(path, file).unwrap();
            }
        }
        let directory = folder.path().join("backends");
        Self { folder, directory }
    }

    fn install(&self) -> Result<Installation, InstallError> {
        self.install_named("onnxruntime", PACKAGED)
    }

    fn install_named(&self, name: &str, origin: Origin<'_>) -> Result<Installation, InstallError> {
        let script = self.folder.path().join("python").display().to_string();
        Installer {
            python: vec!["sh".to_owned(), script],
            architecture: "x86_64",
            beside: Some(self.folder.path().to_owned()),
        }
        .install(name, &self.directory, origin)
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
    let expected = Installation { fresh: true, version, folder: folder.clone(), missing: None };
    assert_eq!(bed.install().unwrap(), expected);
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
    assert!(!again.fresh, "{again:?}");
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
    assert!(bed.install().unwrap().fresh);
    assert!(!folder.join("libonnxruntime.so.1.0.0").exists());
    assert_eq!(bed.entries(), ["onnxruntime"]);

    fs::remove_file(folder.join("libonnxruntime_providers_shared.so")).unwrap();
    fs::remove_file(bed.folder.path().join("calls")).unwrap();
    assert_eq!(list(&bed.directory)[0].installed, None);
    assert!(bed.install().unwrap().fresh);
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
    fs::remove_file(bed.folder.path().join("content").join(PACKAGES[0].sources[0].kept[0].0))
        .unwrap();
    let error = bed.install().unwrap_err().to_string();
    assert!(error.contains("libonnxruntime.so"), "{error}");
    assert!(bed.entries().is_empty());
}

#[test]
fn what_cannot_be_had_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let installer = |architecture| Installer {
        python: vec!["/no/python".to_owned()],
        architecture,
        beside: None,
    };
    let cases = [
        (
            "tensorrt",
            "x86_64",
            "no back end is named 'tensorrt'; there are: onnxruntime, pytorch, cuda",
        ),
        ("onnxruntime", "riscv64", "this machine's riscv64, only for x86_64, aarch64"),
        ("pytorch", "aarch64", "this machine's aarch64, only for x86_64"),
        ("onnxruntime", "x86_64", "python3, which fetches the package, could not be started"),
    ];
    for (name, architecture, expected) in cases {
        let error =
            installer(architecture).install(name, folder.path(), PACKAGED).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(list(folder.path())[0].installed, None);
}

#[test]
fn pytorch_comes_from_three_packages_and_wants_a_library_of_ours() {
    let bed = Bed::new();
    let first = bed.install_named("pytorch", PACKAGED).unwrap();
    assert_eq!(first.missing, Some((pytorch::BRIDGE, pytorch::BUILD)));
    for file in ["lib/libtorch_cpu.so", "lib/libcudart.so.13", "include", "VERSION"] {
        assert!(first.folder.join(file).exists(), "{file}");
    }
    let calls = bed.calls();
    assert_eq!(calls.matches("--require-hashes").count(), 3);
    assert_eq!(list(&bed.directory)[1].missing, first.missing);

    fs::write(bed.folder.path().join(pytorch::BRIDGE), "ours").unwrap();
    let second = bed.install_named("pytorch", PACKAGED).unwrap();
    assert_eq!((second.fresh, second.missing), (false, None));
    assert!(second.folder.join(pytorch::BRIDGE).is_file());
    assert_eq!(bed.calls(), calls);
}

#[test]
fn what_runs_on_gpus_takes_the_place_of_what_does_not_and_stays() {
    let bed = Bed::new();
    for (name, library) in
        [("onnxruntime", "libonnxruntime_providers_cuda.so"), ("pytorch", "nvidia/libcublas.so.13")]
    {
        let index = PACKAGES.iter().position(|package| package.name == name).unwrap();
        assert!(bed.install_named(name, PACKAGED).unwrap().fresh);
        assert!(!bed.directory.join(name).join(library).exists());
        assert!(!list(&bed.directory)[index].for_gpus);
        let installed = bed.install_named(name, FOR_GPUS).unwrap();
        assert!(installed.fresh && installed.folder.join(library).is_file());
        let listed = &list(&bed.directory)[index];
        assert_eq!((listed.for_gpus, listed.installed.as_deref()), (true, Some(listed.version)));
        let calls = bed.calls();
        for origin in [PACKAGED, FOR_GPUS] {
            assert!(!bed.install_named(name, origin).unwrap().fresh);
        }
        assert_eq!(bed.calls(), calls);
        fs::remove_file(installed.folder.join(library)).unwrap();
        assert_eq!(list(&bed.directory)[index].installed, None);
    }
    let error = bed.install_named("cuda", FOR_GPUS).unwrap_err().to_string();
    assert_eq!(error, "back end 'cuda' is the same for GPUs: install it without --gpu");
}

#[test]
fn an_installation_elsewhere_is_taken_if_it_is_of_the_version() {
    let bed = Bed::new();
    let torch = bed.folder.path().join("torch");
    let install =
        || bed.install_named("pytorch", Origin::Folder(&torch)).map_err(|error| error.to_string());
    let error = install().unwrap_err();
    assert!(error.contains("there is no lib/libtorch_cpu.so"), "{error}");
    fs::create_dir_all(torch.join("lib")).unwrap();
    fs::write(torch.join("lib/libtorch_cpu.so"), "").unwrap();
    let error = install().unwrap_err();
    assert!(error.contains("no version.py or build-version"), "{error}");
    fs::write(torch.join("version.py"), "__all__ = []\n__version__ = '2.9.1+cu130'\n").unwrap();
    let error = install().unwrap_err();
    assert!(error.contains("2.9.1+cu130; expected version 2.11.0"), "{error}");
    assert!(!bed.directory.join("pytorch").exists());

    fs::write(torch.join("version.py"), "__version__ = '2.11.0+cu130'\n").unwrap();
    let folder = install().unwrap().folder;
    let note = fs::read_to_string(folder.join(pytorch::INSTALLATION)).unwrap();
    assert_eq!(note.trim(), torch.display().to_string());
    assert_eq!(list(&bed.directory)[1].installed.as_deref(), Some(pytorch::VERSION));
    assert!(bed.calls().is_empty());
    let error = bed.install_named("onnxruntime", Origin::Folder(&torch)).unwrap_err().to_string();
    assert!(error.contains("'onnxruntime'"), "{error}");
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
    assert!(install("onnxruntime", folder.path(), PACKAGED).unwrap().fresh);
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
        Command::Install { name, directory, from: None, gpu: false } => {
            assert_eq!((name.as_str(), place(directory).as_deref()), ("onnxruntime", Some("/b")));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(parse(&["list"]).unwrap(), Command::List { directory: None }));
    assert!(parse(&["install"]).is_err());
    assert!(parse(&["install", "pytorch", "--gpu", "--from", "/torch"]).is_err());
}
