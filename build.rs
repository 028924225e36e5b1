//! Compiles our `.proto` files without a `protoc`: `protox` parses them, `prost` makes the messages,
//! `tonic` the service of every call that it serves.
//!
//! `ModelInfer` and `ModelStreamInfer` are left out of tonic's service: the ingress answers them on
//! HTTP/2 frames directly (see `src/ingress/grpc/`), so tonic never sees them.

use std::{env, fs, path::PathBuf};

use prost::Message as _;
use protox::prost;

const DIRECT_METHODS: [&str; 2] = ["ModelInfer", "ModelStreamInfer"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
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
