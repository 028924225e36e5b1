//! Opening and inspecting model files, and what instances share.

use super::{
    model::{Dim, Graph, attribute, mlp, unary},
    *,
};
use crate::{
    backend::{
        InlineFitness,
        onnxruntime::{VERSION, model::OnnxModel, session::Device},
    },
    proto::{ModelInstanceGroup, model_instance_group::Kind},
};

fn mlp_case() -> Case {
    Case::new(&mlp(), &[("x", DataType::Fp32, &[64])], &[("logits", DataType::Fp32, &[10])])
        .batching(8)
}

#[test]
fn the_back_end_tells_its_name_and_version() {
    let Some(runtime) = runtime() else { return };
    assert_eq!(runtime.name(), "onnxruntime");
    assert_eq!(runtime.version(), VERSION);
    assert_eq!(runtime.default_model_filename(), Some("model.onnx"));
}

#[test]
fn inspecting_tells_names_types_and_sizes() {
    let Some(runtime) = runtime() else { return };
    let file = Graph::default()
        .input("x", model::FLOAT16, &[Dim::Named("n"), Dim::Fixed(3), Dim::Any])
        .input("s", model::STRING, &[])
        .node("Identity", &["x"], &["y"])
        .node("Identity", &["s"], &["t"])
        .output("t", model::STRING, &[])
        .output("y", model::FLOAT16, &[Dim::Named("n"), Dim::Fixed(3), Dim::Any])
        .into_model();
    let case = Case::new(&file, &[], &[]);
    let io = runtime.inspect(&case.source()).unwrap().unwrap();
    let told = |tensors: &[crate::backend::ModelIoTensor]| -> Vec<_> {
        tensors.iter().map(|it| (it.name.clone(), it.datatype, it.dims.to_string())).collect()
    };
    let x = |name: &str| (name.to_owned(), DataType::Fp16, "[-1,3,-1]".to_owned());
    let s = |name: &str| (name.to_owned(), DataType::Bytes, "[]".to_owned());
    assert_eq!(told(&io.inputs), [x("x"), s("s")]);
    assert_eq!(told(&io.outputs), [s("t"), x("y")]);
}

#[test]
fn what_cannot_be_opened_names_the_model_and_the_reason() {
    let Some(runtime) = runtime() else { return };
    let dims = [Dim::Fixed(1)];
    let mut cut = mlp();
    cut.truncate(cut.len() / 2);
    let sequence = Graph::default()
        .input("x", model::FLOAT, &dims)
        .node("SequenceConstruct", &["x"], &["y"])
        .output("y", model::FLOAT, &dims)
        .into_model();
    let unknown_type = Graph::default()
        .input("x", model::FLOAT, &dims)
        .node_with("Cast", &["x"], &["y"], &[attribute("to", model::FLOAT8)])
        .output("y", model::FLOAT8, &dims)
        .into_model();
    let cases = [
        (b"no model at all".to_vec(), "onnx runtime error"),
        (Vec::new(), "onnx runtime error"),
        (cut, "onnx runtime error"),
        (unary("NoSuchOperator", model::FLOAT, &dims), "NoSuchOperator"),
        (sequence, "onnx runtime error"),
        (unknown_type, "unsupported ONNX element type 17 for 'y'"),
    ];
    for (file, expected) in cases {
        let case = Case::new(&file, &[("x", DataType::Fp32, &[1])], &[("y", DataType::Fp32, &[1])]);
        let error = case.load(&runtime).err().unwrap().0;
        assert!(error.contains("'m'") && error.contains(expected), "{error}");
        let error = runtime.inspect(&case.source()).unwrap_err().0;
        assert!(error.contains("'m'") && error.contains(expected), "{error}");
    }
    let case = mlp_case();
    std::fs::remove_file(case.folder.path().join("model.onnx")).unwrap();
    let error = case.load(&runtime).err().unwrap().0;
    assert!(error.contains("model.onnx' for model 'm'"), "{error}");
}

#[test]
fn a_folder_in_place_of_the_file_holds_model_onnx() {
    let Some(runtime) = runtime() else { return };
    let case = mlp_case();
    let mut source = case.source();
    source.model_path = case.folder.path().to_owned();
    assert!(runtime.load(&source).is_ok());
}

#[test]
fn a_gpu_that_the_library_cannot_drive_is_refused_with_what_it_offers() {
    let Some(runtime) = runtime() else { return };
    if runtime.runtime.offers("CUDA") {
        return;
    }
    let mut case = mlp_case();
    let group = ModelInstanceGroup { kind: Kind::Gpu as i32, gpus: vec![0], ..Default::default() };
    case.config.instance_group.push(group);
    let loaded = case.load(&runtime).unwrap();
    assert_eq!(loaded.inline_fitness(), InlineFitness::Never);
    let error = instance_on(&*loaded, PlacementDevice::Gpu(0)).err().unwrap().0;
    for part in ["'m' on GPU 0", "has no CUDAExecutionProvider", "CPUExecutionProvider"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn instances_share_a_session_unless_told_otherwise() {
    let Some(runtime) = runtime() else { return };
    for (share, expected) in [(None, true), (Some("true"), true), (Some("false"), false)] {
        let mut case = mlp_case();
        if let Some(share) = share {
            case = case.parameter("share_session_between_instances", share);
        }
        let loaded =
            OnnxModel::load(runtime.runtime, runtime.devices.clone(), &case.source()).unwrap();
        let first = loaded.execution(Device::Host).unwrap();
        let second = loaded.execution(Device::Host).unwrap();
        assert_eq!(Arc::ptr_eq(&first, &second), expected, "{share:?}");
    }
}

#[test]
fn one_thread_runs_inline_and_more_do_not() {
    let Some(runtime) = runtime() else { return };
    let cases: [(&[(&str, &str)], bool); 5] = [
        (&[], true),
        (&[("intra_op_thread_count", "1")], true),
        (&[("intra_op_thread_count", "2")], false),
        (&[("intra_op_thread_count", "0")], false),
        (&[("execution_mode", "1")], false),
    ];
    for (parameters, inline) in cases {
        let mut case = mlp_case();
        for (name, value) in parameters {
            case = case.parameter(name, value);
        }
        let fitness = case.load(&runtime).unwrap().inline_fitness();
        assert_eq!(fitness == InlineFitness::IfFast, inline, "{parameters:?}");
        let input = numbers(&[1, 64], vec![1.0_f32; 64]);
        assert!(case.run(&runtime, 1, &[input]).is_ok());
    }
}

#[test]
fn the_options_of_a_session_are_taken() {
    let Some(runtime) = runtime() else { return };
    let case = mlp_case()
        .parameter("enable_mem_arena", "1")
        .parameter("enable_mem_pattern", "false")
        .parameter("memory.enable_memory_arena_shrinkage", "cpu:0")
        .parameter("session.set_denormal_as_zero", "1")
        .parameter("inter_op_thread_count", "2");
    let input = numbers(&[1, 64], vec![1.0_f32; 64]);
    assert!(case.run(&runtime, 1, std::slice::from_ref(&input)).is_ok());
    // A device that is not there shows that the run's option reached ONNX Runtime.
    let case = mlp_case().parameter("memory.enable_memory_arena_shrinkage", "gpu:0");
    let error = case.run(&runtime, 1, &[input]).unwrap_err().0;
    assert!(error.contains("memory arena shrink list: gpu:0"), "{error}");
}
