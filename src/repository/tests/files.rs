//! Folders and files, well-formed and hostile.

use std::{
    os::unix::{ffi::OsStrExt as _, fs::symlink},
    path::PathBuf,
};

use super::*;
use crate::inference::Code;

fn scan(roots: &[&Path]) -> Vec<Entry> {
    Repository::new(roots.iter().map(|root| root.to_path_buf()).collect(), false)
        .unwrap()
        .scan()
        .unwrap()
}

#[test]
fn models_are_the_folders_of_all_repositories() {
    let one =
        Fixture::new().with("b/1/", "").with("a/1/", "").with("README.md", "").with(".git/", "");
    let two = Fixture::new().with("c/1/", "").with("a/1/", "");
    symlink(one.root().join("b"), one.root().join("linked")).unwrap();
    let entries = scan(&[one.root(), two.root()]);
    let names: Vec<(&str, bool)> =
        entries.iter().map(|entry| (entry.id.name.as_str(), entry.error.is_some())).collect();
    assert_eq!(names, [("a", true), ("b", false), ("c", false), ("linked", false)]);
    let duplicate = entries[0].error.as_ref().unwrap().to_string();
    assert_eq!(duplicate, "failed to poll model 'a': not unique across all model repositories");

    let repository = Repository::new(vec![one.root().into(), two.root().into()], false).unwrap();
    assert_eq!(repository.find("c").unwrap()[0].dir, two.root().join("c"));
    assert_eq!(repository.find("a").unwrap_err(), Error::NotUnique { model: "a".into() });
    assert_eq!(
        repository.find("d").unwrap_err().to_string(),
        "failed to poll model 'd': model not found in any model repository."
    );
    for name in ["README.md", ".git"] {
        let error = repository.find(name).unwrap_err();
        assert_eq!(error.code(), Code::NotFound, "{name}");
    }
}

#[test]
fn each_repository_may_be_a_namespace() {
    let one = Fixture::new().with("a/1/", "").with("b/1/", "");
    let two = Fixture::new().with("a/1/", "");
    let repository = Repository::new(vec![one.root().into(), two.root().into()], true).unwrap();
    let entries = repository.scan().unwrap();
    assert_eq!(entries.len(), 3);
    assert!(entries.iter().all(|entry| entry.error.is_none()));
    let both: Vec<_> = repository.find("a").unwrap().into_iter().map(|entry| entry.dir).collect();
    assert_eq!(both, [one.root().join("a"), two.root().join("a")]);
    let namespaces: Vec<_> = repository.find("b").unwrap().into_iter().map(|it| it.id).collect();
    let namespace = one.root().to_string_lossy().into_owned();
    assert_eq!(namespaces, [ModelId { name: "b".into(), namespace }]);
}

#[test]
fn a_folder_may_be_registered_for_one_of_its_models() {
    let ensemble = "platform: 'ensemble'";
    let whole = Fixture::new().with("e/config.pbtxt", ensemble).with("step/1/", "");
    let own = Fixture::new().with("model/config.pbtxt", "name: 'model'").with("model/1/", "");
    let (options, at) = (Options::default(), |path: &Path| fs::canonicalize(path).unwrap());
    let repository = Repository::new(Vec::new(), false).unwrap();
    let register = |path: &Path, name: &str| repository.register(path, name, &options);
    assert_eq!(register(whole.root(), "x"), Ok(at(whole.root())));
    assert_eq!(register(&own.root().join("model"), "y"), Ok(at(own.root())));
    let found: Vec<_> = repository.scan().unwrap().into_iter().map(|entry| entry.id.name).collect();
    assert_eq!(found, ["step", "x", "y"]);
    let dir =
        |name: &str| Some(repository.find(name).ok()?.remove(0)).map(|it| (it.dir, it.renamed));
    assert_eq!(dir("x"), Some((at(whole.root()).join("e"), true)));
    assert_eq!(dir("step"), Some((at(whole.root()).join("step"), false)));
    assert_eq!(dir("y"), Some((at(own.root()).join("model"), true)));
    for hidden in ["e", "model"] {
        assert_eq!(dir(hidden), None, "{hidden}");
    }
    let code = |registered: Result<PathBuf, Error>| registered.unwrap_err().code();
    assert_eq!(code(register(whole.root(), "z")), Code::AlreadyExists);
    let other = Fixture::new().with("m/1/", "");
    assert_eq!(code(register(other.root(), "x")), Code::AlreadyExists);
    assert_eq!(code(register(other.root(), "a/b")), Code::InvalidArgument);
    repository.unregister("x");
    assert_eq!((dir("x"), dir("step")), (None, None));
    assert!(register(other.root(), "x").is_ok());
}

#[test]
fn a_link_that_leads_to_itself_is_an_error_that_names_it() {
    let fixture = Fixture::new().with("m/1/", "");
    symlink("loop", fixture.root().join("loop")).unwrap();
    let repository = Repository::new(vec![fixture.root().into()], false).unwrap();
    let found = repository.find("loop").unwrap();
    let error = found[0].error.as_ref().unwrap().to_string();
    assert!(error.contains("/loop': symbolic links form a cycle"), "{error}");
    assert!(repository.find("m").unwrap()[0].error.is_none());
}

#[test]
fn hostile_names_are_refused() {
    let fixture = Fixture::new().with("m/1/model.onnx", "");
    let repository = Repository::new(vec![fixture.root().into()], false).unwrap();
    for name in ["", ".", "..", "../m", "a/b", "m/", "/etc", "m\0"] {
        let expected = Error::BadModelName { name: name.to_owned() };
        assert_eq!(repository.find(name).unwrap_err(), expected, "{name:?}");
        let options = Arc::new(Options::default());
        assert_eq!(Draft::read(name, &fixture.root().join("m"), &options).unwrap_err(), expected);
    }
}

#[test]
fn paths_do_not_leave_the_model() {
    let cases = [
        ("default_model_filename: '../../secret'", "default_model_filename '../../secret'", 1),
        ("\ndefault_model_filename: '/etc/passwd'", "default_model_filename '/etc/passwd'", 2),
        (
            "\n\ncc_model_filenames { key: '9.0' value: 'a/../../b' }",
            "cc_model_filenames 'a/../../b'",
            3,
        ),
        (
            "model_warmup { name: 'a' }\n\
             model_warmup { inputs { key: 'x' value { input_data_file: '../x' } } }",
            "input_data_file '../x'",
            2,
        ),
        (
            "sequence_batching {\nstate { }\nstate {\ninitial_state { data_file: '/x' } } }",
            "data_file '/x'",
            4,
        ),
        ("output { name: 'y'\nlabel_filename: '../labels' }", "label_filename '../labels'", 2),
    ];
    for (config, expected, line) in cases {
        let error = onnx(config).draft("m", &Options::default()).unwrap_err();
        let location = error.location().unwrap();
        assert_eq!(location.line, line, "{config}");
        assert!(location.file.ends_with("m/config.pbtxt"), "{location}");
        assert_eq!(
            error.to_string(),
            format!(
                "{expected} of model 'm' leaves the model's folder: expected a relative path \
                 without '..'"
            )
        );
    }
}

#[test]
fn broken_links_and_strange_names_are_entries_with_an_error() {
    let fixture = Fixture::new();
    symlink("loop", fixture.root().join("loop")).unwrap();
    symlink("nowhere", fixture.root().join("dangling")).unwrap();
    fs::create_dir(fixture.root().join(std::ffi::OsStr::from_bytes(b"bad\xff"))).unwrap();
    let entries = scan(&[fixture.root()]);
    let errors: Vec<String> =
        entries.into_iter().map(|entry| entry.error.unwrap().to_string()).collect();
    assert!(
        errors[0].starts_with("model name \"bad\u{fffd}\" is not a folder's name"),
        "{errors:?}"
    );
    assert!(errors[1].ends_with("dangling': No such file or directory"), "{errors:?}");
    assert!(errors[2].ends_with("loop': symbolic links form a cycle"), "{errors:?}");
}

#[test]
fn unreadable_configurations_say_why() {
    let reason = |fixture: Fixture| match fixture.draft("m", &Options::default()).unwrap_err() {
        Error::Unreadable { path, reason } if path.ends_with("m/config.pbtxt") => reason,
        other => panic!("{other}"),
    };
    let empty = || Fixture::new().with("m/1/model.onnx", "");
    assert_eq!(reason(empty().with("m/config.pbtxt/", "")), "it is not a regular file");
    assert_eq!(
        reason(empty().with("m/config.pbtxt", b"name: \"\xff\"")),
        "it is not UTF-8: invalid byte at offset 7"
    );
    let huge = vec![b' '; layout::TEXT_BYTES_MAX as usize + 1];
    assert_eq!(reason(empty().with("m/config.pbtxt", huge)), "it is larger than 16777216 bytes");
    let looping = empty();
    symlink("config.pbtxt", looping.root().join("m/config.pbtxt")).unwrap();
    assert_eq!(reason(looping), "symbolic links form a cycle");
    let pipe = empty();
    nix::unistd::mkfifo(&pipe.root().join("m/config.pbtxt"), nix::sys::stat::Mode::S_IRWXU)
        .unwrap();
    assert_eq!(reason(pipe), "it is not a regular file");
}

#[test]
fn versions_are_positive_numbers_without_leading_zeros() {
    let fixture = [
        "2",
        "10",
        "1",
        "0",
        "007",
        "latest",
        "-3",
        "1abc",
        "configs",
        "warmup",
        "99999999999999999999",
    ]
    .iter()
    .fold(Fixture::new(), |fixture, name| fixture.with(&format!("m/{name}/model.onnx"), ""))
    .with("m/5", "a file")
    .with("m/config.pbtxt", "version_policy { all { } }");
    let draft = fixture.draft("m", &Options::default()).unwrap();
    assert_eq!(draft.versions(), [1, 2, 10]);
    let ignored: Vec<&str> =
        draft.warnings().iter().filter_map(|warning| warning.split('\'').nth(1)).collect();
    assert_eq!(ignored, ["-3", "0", "007", "1abc", "99999999999999999999", "latest"]);
    let none = Fixture::new().with("m/config.pbtxt", "backend: 'onnxruntime'");
    assert_eq!(
        none.draft("m", &Options::default()).unwrap_err().to_string(),
        "at least one version must be available under the version policy of model 'm'"
    );
}

#[test]
fn a_named_configuration_is_preferred() {
    let fixture = onnx("max_batch_size: 1").with("m/configs/big.pbtxt", "max_batch_size: 64");
    let size = |name: Option<&str>| {
        let options = Options { config_name: name.map(str::to_owned), ..Options::default() };
        fixture.draft("m", &options).unwrap().config().max_batch_size
    };
    assert_eq!(
        [size(None), size(Some("big")), size(Some("none")), size(Some("../configs/big"))],
        [1, 64, 1, 1]
    );
}

#[test]
fn the_folder_names_the_model() {
    assert_eq!(onnx("").draft("m", &Options::default()).unwrap().name(), "m");
    let other = onnx("backend: 'onnxruntime'\nname: 'other'");
    let error = other.draft("m", &Options::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "unexpected directory name 'm' for model 'other', directory name must equal model name"
    );
    let location = error.location().unwrap();
    assert_eq!((location.line, location.column), (2, 1));
    let options = Options { rename: true, ..Options::default() };
    assert_eq!(other.draft("m", &options).unwrap().name(), "m");
}

#[test]
fn labels_are_read_a_line_each() {
    let config = "output { name: 'y' data_type: TYPE_FP32 dims: 3 label_filename: 'labels.txt' }";
    let fixture = onnx(config).with("m/labels.txt", "cat\r\ndog\n\nbird");
    let definition = fixture.draft("m", &Options::default()).unwrap().complete(None).unwrap();
    assert_eq!(&*definition.labels["y"], ["cat", "dog", "", "bird"]);
    let error = onnx(config).draft("m", &Options::default()).unwrap().complete(None).unwrap_err();
    assert!(error.to_string().ends_with("m/labels.txt': No such file or directory"), "{error}");
}
