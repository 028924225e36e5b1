use std::{
    fs,
    io::Write as _,
    sync::{Arc, Mutex},
};

use age::secrecy::ExposeSecret as _;

use super::*;
use crate::{
    proto::{ModelConfig, ModelRepositoryAgents, model_repository_agents},
    repository::Options,
};

type Diary = Arc<Mutex<Vec<String>>>;

/// An agent that notes what it is told and does as its parameters say.
struct Witness {
    name: &'static str,
    diary: Diary,
}

impl Agent for Witness {
    fn begin(&self, model: &AgentModel) -> Result<Box<dyn AgentSession>, AgentError> {
        let session = Witness { name: self.name, diary: self.diary.clone() };
        match model.parameter("begin") {
            Some(message) => Err(AgentError::invalid(message)),
            None => Ok(Box::new(session)),
        }
    }
}

impl AgentSession for Witness {
    fn act(&mut self, action: Action, model: &mut AgentModel) -> Result<(), AgentError> {
        let short = action.to_string().replace("TRITONREPOAGENT_ACTION_", "");
        self.diary.lock().unwrap().push(format!("{} {short}", self.name));
        if action != Action::Load {
            let refused = model.replace_location("/".into()).unwrap_err();
            assert!(refused.to_string().ends_with(&format!("current action type is {action}")));
            return Err(AgentError::invalid("errors after the load are logged"));
        }
        if model.parameter("copy").is_some() {
            let from = model.location().join("config.pbtxt");
            let to = model.acquire_location()?.to_owned();
            fs::create_dir(to.join("7")).unwrap();
            fs::copy(from, to.join("config.pbtxt")).unwrap();
            model.replace_location(to)?;
        }
        match model.parameter("load") {
            Some(message) => Err(AgentError::invalid(message)),
            None => Ok(()),
        }
    }
}

fn witnesses() -> (Agents, Diary) {
    let (mut agents, diary) = (Agents::built_in(), Diary::default());
    for name in ["a", "b"] {
        agents.add(name, Arc::new(Witness { name, diary: diary.clone() }));
    }
    (agents, diary)
}

fn told(diary: &Diary) -> String {
    std::mem::take(&mut *diary.lock().unwrap()).join(", ")
}

/// A configuration that names these agents, each with its parameters.
fn config(named: &[(&str, &[(&str, &str)])]) -> ModelConfig {
    let agents = named.iter().map(|(name, parameters)| model_repository_agents::Agent {
        name: name.to_string(),
        parameters: parameters.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
    });
    let agents = ModelRepositoryAgents { agents: agents.collect() };
    ModelConfig { model_repository_agents: Some(agents), ..ModelConfig::default() }
}

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("1")).unwrap();
    fs::write(dir.path().join("1/model.onnx"), "abc").unwrap();
    dir
}

/// Why the agents do not have the model in `dir` loaded.
fn refusal(dir: &Path, named: &[(&str, &[(&str, &str)])]) -> String {
    AgentChain::load(&witnesses().0, "m", &config(named), dir).unwrap_err().to_string()
}

#[test]
fn loads_and_unloads_go_in_order_and_their_ends_in_reverse() {
    let (agents, diary) = witnesses();
    let dir = folder();
    let both = config(&[("a", &[]), ("b", &[])]);
    let chain = AgentChain::load(&agents, "m", &both, dir.path()).unwrap().unwrap();
    assert_eq!(told(&diary), "a LOAD, b LOAD");
    assert_eq!(chain.dir(), dir.path());
    chain.loaded();
    assert_eq!(told(&diary), "b LOAD_COMPLETE, a LOAD_COMPLETE");
    chain.unloading();
    chain.unloading();
    assert_eq!(told(&diary), "a UNLOAD, b UNLOAD");
    drop(chain);
    assert_eq!(told(&diary), "b UNLOAD_COMPLETE, a UNLOAD_COMPLETE");
    // Without a word of the unload.
    AgentChain::load(&agents, "m", &both, dir.path()).unwrap().unwrap().loaded();
    assert_eq!(
        told(&diary),
        "a LOAD, b LOAD, b LOAD_COMPLETE, a LOAD_COMPLETE, a UNLOAD, b UNLOAD, b UNLOAD_COMPLETE, \
         a UNLOAD_COMPLETE"
    );
    // The load fails after the agents.
    drop(AgentChain::load(&agents, "m", &both, dir.path()).unwrap().unwrap());
    assert_eq!(told(&diary), "a LOAD, b LOAD, b LOAD_FAIL, a LOAD_FAIL");
    assert!(AgentChain::load(&agents, "m", &ModelConfig::default(), dir.path()).unwrap().is_none());
}

#[test]
fn an_agent_that_refuses_is_named_and_those_before_it_are_told() {
    let (agents, diary) = witnesses();
    let dir = folder();
    for (second, reason) in [
        (("b", &[("load", "not today")][..]), "agent 'b' of model 'm': not today"),
        (("b", &[("begin", "not at all")]), "agent 'b' of model 'm': not at all"),
        (("no_such", &[]), "agent 'no_such' of model 'm': there is no such agent; this server has"),
    ] {
        let named = config(&[("a", &[]), second]);
        let error = AgentChain::load(&agents, "m", &named, dir.path()).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(told(&diary).ends_with("a LOAD_FAIL"));
    }
}

#[test]
fn the_folder_that_the_last_agent_leaves_is_the_model() {
    let (agents, _) = witnesses();
    let dir = folder();
    let text = r#"
        backend: "identity"
        model_repository_agents { agents [
            { name: "a" parameters { key: "copy" value: "" } }, { name: "b" }
        ] }
    "#;
    fs::write(dir.path().join("config.pbtxt"), text).unwrap();
    let options = Arc::new(Options::default());
    let (draft, chain) = agents
        .draft("m", dir.path(), Written::read(dir.path(), &options).unwrap(), &options)
        .unwrap();
    let left = chain.as_ref().unwrap().dir().to_owned();
    assert_eq!(draft.versions(), [7]);
    assert!(left != dir.path() && left.join("7").is_dir());
    drop(chain);
    assert!(!left.exists());
    // A configuration that comes with the request names the agents, and is what counts.
    let given = ModelConfig { max_batch_size: 3, ..draft.config().clone() };
    let (draft, chain) = agents.draft("m", dir.path(), given.into(), &options).unwrap();
    assert_eq!((draft.versions(), draft.config().max_batch_size), (&[7][..], 3));
    assert!(chain.is_some());
}

#[test]
fn sums_are_checked() {
    const MD5: &str = "900150983cd24fb0d6963f7d28e17f72";
    const SHA256: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let dir = folder();
    let upper = MD5.to_ascii_uppercase();
    for (key, sum) in
        [("MD5:1/model.onnx", MD5), ("md5:1/model.onnx", &upper), ("SHA256:1/model.onnx", SHA256)]
    {
        let named = config(&[("checksum", &[(key, sum)])]);
        AgentChain::load(&Agents::built_in(), "m", &named, dir.path()).unwrap();
    }
    for (key, sum, reason) in [
        ("MD5", MD5, "failed to parse key: MD5"),
        ("crc:1/model.onnx", MD5, "Unsupported checksum algorithm: crc"),
        ("MD5:2/model.onnx", MD5, "failed to open text file for read 2/model.onnx: No such file"),
        ("MD5:1", MD5, "failed to open text file for read 1: it is not a regular file"),
        ("MD5:../x", MD5, "'../x' leaves the model's folder"),
        (
            "MD5:1/model.onnx",
            "00",
            "Mismatched MD5 hash for file 1/model.onnx, expect: 00, got: \
             900150983cd24fb0d6963f7d28e17f72",
        ),
    ] {
        let error = refusal(dir.path(), &[("checksum", &[(key, sum)])]);
        assert!(error.contains(reason), "{key}: {error}");
    }
}

#[test]
fn encrypted_files_are_served_decrypted() {
    let key = age::x25519::Identity::generate();
    let secrets = tempfile::tempdir().unwrap();
    let identity = secrets.path().join("identity");
    fs::write(&identity, format!("# a comment\n{}\n", key.to_string().expose_secret())).unwrap();
    let other = secrets.path().join("other");
    let stranger = age::x25519::Identity::generate();
    fs::write(&other, stranger.to_string().expose_secret()).unwrap();
    let dir = folder();
    let encrypt = |name: &str, plain: &[u8]| {
        fs::write(dir.path().join(name), age::encrypt(&key.to_public(), plain).unwrap()).unwrap();
    };
    let large: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    encrypt("1/data.bin.age", &large);
    encrypt("1/model.onnx.age", b"secret");
    fs::write(dir.path().join("labels.txt"), "cat").unwrap();
    std::os::unix::fs::symlink("..", dir.path().join("1/up")).unwrap();
    let armored = age::encrypt_and_armor(&key.to_public(), b"armoured").unwrap();
    fs::File::create(dir.path().join("text.age")).unwrap().write_all(armored.as_bytes()).unwrap();

    let parameter = ("identity_file", identity.to_str().unwrap());
    let named = config(&[("decrypt", &[parameter])]);
    let chain = AgentChain::load(&Agents::built_in(), "m", &named, dir.path()).unwrap().unwrap();
    let read = |name: &str| fs::read(chain.dir().join(name)).unwrap();
    assert_eq!(read("1/data.bin"), large);
    assert_eq!(read("1/model.onnx"), b"secret");
    assert_eq!(read("labels.txt"), b"cat");
    assert_eq!(read("text"), b"armoured");
    assert!(!chain.dir().join("1/model.onnx.age").exists());
    assert_eq!(fs::read(dir.path().join("1/model.onnx")).unwrap(), b"abc");
    let left = chain.dir().to_owned();
    drop(chain);
    assert!(!left.exists());

    for (parameters, reason) in [
        (&[][..], "expected one of the parameters 'identity_file' and 'identity_env'"),
        (&[parameter, ("identity_env", "X")], "expected one of the parameters"),
        (&[("identity", "X")], "unknown parameter 'identity'"),
        (&[("identity_file", "/no/such/file")], "identity file '/no/such/file': No such file"),
        (&[("identity_env", "NEREID_NO_SUCH")], "'NEREID_NO_SUCH' is not set"),
        (&[("identity_file", dir.path().join("labels.txt").to_str().unwrap())], "no age identity"),
        (&[("identity_file", other.to_str().unwrap())], ".age': No matching keys found"),
    ] {
        let error = refusal(dir.path(), &[("decrypt", parameters)]);
        assert!(error.contains(reason), "{error}");
        assert!(!error.contains("AGE-SECRET-KEY"), "{error}");
    }
    fs::write(dir.path().join("text.age"), "not encrypted").unwrap();
    let error = refusal(dir.path(), &[("decrypt", &[parameter])]);
    assert!(error.contains("text.age'"), "{error}");
}
