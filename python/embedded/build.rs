//! Builds `python/native` by a cargo of its own.
//!
//! Cargo on stable gives no package the library of another as a file, and a Python module is made otherwise than the
//! server: as a shared library, with the profile `python`, and without what instruments the server (sanitizers,
//! coverage). A folder for it alone keeps the two cargos from waiting for each other; they share the jobs.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const ROOT: &str = "../..";
/// What the library depends on.
const SOURCES: [&str; 4] = [".cargo/config.toml", "Cargo.lock", "Cargo.toml", "python/native"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = fs::canonicalize(ROOT)?;
    let out = PathBuf::from(required("OUT_DIR")?);
    let target = required("TARGET")?;
    for source in SOURCES {
        println!("cargo::rerun-if-changed={ROOT}/{source}");
    }
    build(&root, &out.join("target"), &target)?;
    let library = out.join("target").join(&target).join("python/libnereid_python.so");
    fs::copy(&library, out.join("nereid_python.so"))
        .map_err(|error| format!("{} cannot be copied: {error}", library.display()))?;
    Ok(())
}

fn build(root: &Path, folder: &Path, target: &str) -> Result<(), Box<dyn std::error::Error>> {
    let mut command = Command::new(required("CARGO")?);
    command.args(["build", "--locked", "--package=nereid-python", "--profile=python"]);
    command.arg("--target").arg(target).arg("--target-dir").arg(folder);
    for (name, _) in env::vars_os().filter(|(name, _)| is_of_the_server(name)) {
        command.env_remove(name);
    }
    command.env("CARGO_BUILD_BUILD_DIR", folder);
    // What is printed there is for this cargo.
    let done = command.current_dir(root).stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    if !done.success() {
        let package = root.join("python/native");
        return Err(format!("{} cannot be built: cargo, {done}", package.display()).into());
    }
    Ok(())
}

/// Whether a variable says how the server is compiled, or by which tool instead of the compiler.
fn is_of_the_server(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let compiles = name.starts_with("CARGO_BUILD_") || name.starts_with("CARGO_PROFILE_");
    let flags = name.ends_with("RUSTFLAGS") || name == "CLIPPY_ARGS";
    compiles || flags || name == "RUSTC_WORKSPACE_WRAPPER"
}

fn required(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}"))
}
