//! Compiles our `.proto` files without a `protoc`: `protox` parses them, `prost` makes the messages,
//! `tonic` the service of every call that it serves. Compiles our CUDA kernels where there is an
//! `nvcc`; without one the program runs them on the host alone.
//!
//! `ModelInfer` and `ModelStreamInfer` are left out of tonic's service: the ingress answers them on
//! HTTP/2 frames directly (see `src/ingress/grpc/`), so tonic never sees them.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use prost::Message as _;
use protox::prost;

const DIRECT_METHODS: [&str; 2] = ["ModelInfer", "ModelStreamInfer"];

/// Where `scripts/setup_cuda.sh` puts a compiler.
const CUDA_OF_THE_PROJECT: &str = "build/cuda/nvidia/cu13";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    compile_protos(&out)?;
    compile_kernels(&out)
}

fn compile_protos(out: &Path) -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut descriptors =
        protox::compile(["grpc_service.proto", "health.proto", "reflection.proto"], ["proto"])?;
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    let otlp = protox::compile(["otlp.proto"], ["proto"])?;
    prost_build::Config::new().bytes(["."]).compile_fds(otlp)?;

    for service in descriptors.file.iter_mut().flat_map(|file| file.service.iter_mut()) {
        service.method.retain(|method| !DIRECT_METHODS.contains(&method.name()));
    }
    let mut messages = prost_build::Config::new();
    messages.bytes(["."]).btree_map(["."]);
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        .generate_default_stubs(true)
        .compile_fds_with_config(descriptors, messages)?;
    Ok(())
}

/// Writes `kernels.rs`, which names the image and its compiler, and the image itself beside it.
fn compile_kernels(out: &Path) -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    println!("cargo:rerun-if-changed={CUDA_OF_THE_PROJECT}/bin/nvcc");
    let (image, compiler) = match find_nvcc()? {
        Some(nvcc) => {
            let fatbin = out.join("kernels.fatbin");
            let compiler = format!("nvcc {}", version(&nvcc)?);
            compile(&nvcc, &fatbin)?;
            (format!("Some(include_bytes!({fatbin:?}))"), compiler)
        }
        None => ("None".to_owned(), "no nvcc was there when this program was built".to_owned()),
    };
    let source = format!(
        "pub const IMAGE: Option<&[u8]> = {image};\npub const COMPILED_BY: &str = {compiler:?};\n"
    );
    Ok(fs::write(out.join("kernels.rs"), source)?)
}

/// The compiler of `CUDA_HOME`, which must be there, or else the project's own, if it was fetched.
/// `CUDA_HOME` set to nothing means none.
fn find_nvcc() -> Result<Option<PathBuf>, String> {
    let Some(home) = env::var_os("CUDA_HOME") else {
        let nvcc = Path::new(CUDA_OF_THE_PROJECT).join("bin/nvcc");
        return Ok(nvcc.is_file().then_some(nvcc));
    };
    if home.is_empty() {
        return Ok(None);
    }
    let nvcc = Path::new(&home).join("bin/nvcc");
    match nvcc.is_file() {
        true => Ok(Some(nvcc)),
        false => Err(format!("CUDA_HOME is set, but there is no {}", nvcc.display())),
    }
}

fn compile(nvcc: &Path, fatbin: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let mut command = Command::new(nvcc);
    command.args(["-std=c++17", "-O3", "-Werror=all-warnings", "-fatbin"]);
    // Machine code for the GPUs of data centres, and PTX that drivers compile for later ones.
    for target in [
        "arch=compute_80,code=sm_80",
        "arch=compute_90,code=sm_90",
        "arch=compute_100,code=[sm_100,compute_100]",
    ] {
        command.args(["-gencode", target]);
    }
    let done = command.arg("kernels/all.cu").arg("-o").arg(fatbin).output()?;
    if done.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&done.stderr);
    Err(format!("{} cannot compile kernels/all.cu:\n{errors}", nvcc.display()).into())
}

/// Such as `13.0.88`.
fn version(nvcc: &Path) -> Result<String, Box<dyn std::error::Error>> {
    let done = Command::new(nvcc).arg("--version").output()?;
    let text = String::from_utf8_lossy(&done.stdout);
    let version = text.lines().find_map(|line| line.split_once(", V")).map(|(_, version)| version);
    Ok(version.ok_or("nvcc --version names no version")?.trim().to_owned())
}
