//! What configurations ask of a session; none of these needs the library.

use super::*;
use crate::{
    backend::onnxruntime::settings::{ProviderKind, SessionSettings},
    proto::{
        ModelOperations, ModelOptimizationPolicy,
        model_optimization_policy::{
            ExecutionAccelerators, Graph, execution_accelerators::Accelerator,
        },
    },
};

fn case() -> Case {
    Case::new(b"", &[], &[])
}

fn read(case: &Case) -> Result<SessionSettings, BackendError> {
    SessionSettings::read(&case.source())
}

fn accelerator(name: &str, parameters: &[(&str, &str)]) -> Accelerator {
    let parameters = parameters.iter().map(|&(key, value)| (key.to_owned(), value.to_owned()));
    Accelerator { name: name.to_owned(), parameters: parameters.collect() }
}

fn with_accelerators(gpu: Vec<Accelerator>, cpu: Vec<Accelerator>) -> Case {
    let mut case = case();
    case.config.optimization = Some(ModelOptimizationPolicy {
        execution_accelerators: Some(ExecutionAccelerators {
            gpu_execution_accelerator: gpu,
            cpu_execution_accelerator: cpu,
        }),
        ..Default::default()
    });
    case
}

#[test]
fn a_bare_configuration_runs_on_one_quiet_thread() {
    let settings = read(&case()).unwrap();
    assert!(settings.runs_on_one_thread());
    assert_eq!(settings.intra_op_threads, 1);
    assert_eq!(settings.optimization as i32, 99);
    for key in ["session.intra_op.allow_spinning", "session.inter_op.allow_spinning"] {
        assert_eq!(settings.entries[key], "0");
    }
    assert_eq!(settings.gpu_providers[0].kind, ProviderKind::Cuda);
}

#[test]
fn graph_levels_are_tritons() {
    for (level, expected) in [(-1, 1), (0, 99), (1, 2), (2, 0)] {
        let mut case = case();
        case.config.optimization =
            Some(ModelOptimizationPolicy { graph: Some(Graph { level }), ..Default::default() });
        assert_eq!(read(&case).unwrap().optimization as i32, expected, "level {level}");
    }
}

#[test]
fn a_model_chooses_its_threads_before_the_server_does() {
    let mut case = case();
    case.settings.insert("intra_op_thread_count".to_owned(), "6".to_owned());
    assert_eq!(read(&case).unwrap().intra_op_threads, 6);
    let case = case.parameter("intra_op_thread_count", "3");
    assert_eq!(read(&case).unwrap().intra_op_threads, 3);
}

#[test]
fn session_entries_of_the_model_replace_ours() {
    let case = case()
        .parameter("session.intra_op.allow_spinning", "1")
        .parameter("session.disable_prepacking", "1")
        .parameter("unrelated", "1");
    let entries = read(&case).unwrap().entries;
    assert_eq!(entries["session.intra_op.allow_spinning"], "1");
    assert_eq!(entries["session.disable_prepacking"], "1");
    assert_eq!(entries.len(), 3);
}

#[test]
fn values_out_of_range_name_the_parameter() {
    let cases = [
        ("execution_mode", "2", "expected 0 or 1, got '2'"),
        ("intra_op_thread_count", "many", "expected an integer, got 'many'"),
        ("intra_op_thread_count", "-1", "expected 0 or more, got '-1'"),
        ("enable_mem_arena", "perhaps", "expected true or false, got 'perhaps'"),
        ("cudnn_conv_algo_search", "3", "expected 0 to 2, got '3'"),
    ];
    for (name, value, expected) in cases {
        let error = read(&case().parameter(name, value)).unwrap_err().0;
        assert!(error.contains(name) && error.contains("'m'"), "{error}");
        assert!(error.contains(expected), "{error}");
    }
    let mut case = case();
    case.settings.insert("inter_op_thread_count".to_owned(), "x".to_owned());
    let error = read(&case).unwrap_err().0;
    assert!(error.contains("setting 'inter_op_thread_count'"), "{error}");
}

#[test]
fn accelerators_become_execution_providers() {
    let case = with_accelerators(
        vec![
            accelerator(
                "tensorrt",
                &[
                    ("precision_mode", "FP16"),
                    ("max_workspace_size_bytes", "1024"),
                    ("trt_engine_cache_enable", "1"),
                ],
            ),
            accelerator("cuda", &[("use_tf32", "0")]),
        ],
        vec![accelerator("openvino", &[])],
    )
    .parameter("cudnn_conv_algo_search", "1")
    .parameter("gpu_mem_limit", "4096");
    let settings = read(&case).unwrap();
    let options = |index: usize| -> Vec<(&str, &str)> {
        let options = &settings.gpu_providers[index].options;
        options.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
    };
    assert_eq!(settings.gpu_providers.len(), 2);
    assert_eq!(settings.gpu_providers[0].kind, ProviderKind::TensorRt);
    assert_eq!(
        options(0),
        [
            ("trt_engine_cache_enable", "1"),
            ("trt_fp16_enable", "1"),
            ("trt_max_workspace_size", "1024"),
        ]
    );
    assert_eq!(settings.gpu_providers[1].kind, ProviderKind::Cuda);
    assert_eq!(
        options(1),
        [("cudnn_conv_algo_search", "HEURISTIC"), ("gpu_mem_limit", "4096"), ("use_tf32", "0"),]
    );
    assert_eq!(settings.host_providers[0].kind, ProviderKind::OpenVino);
}

#[test]
fn accelerators_that_nobody_knows_are_refused() {
    let cases = [
        (with_accelerators(vec![accelerator("warp", &[])], vec![]), "Accelerator 'warp'"),
        (with_accelerators(vec![], vec![accelerator("cuda", &[])]), "Accelerator 'cuda'"),
        (
            with_accelerators(vec![accelerator("tensorrt", &[("speed", "1")])], vec![]),
            "unknown parameter 'speed'",
        ),
        (
            with_accelerators(vec![accelerator("tensorrt", &[("precision_mode", "FP4")])], vec![]),
            "unsupported precision mode 'FP4'",
        ),
    ];
    for (case, expected) in cases {
        let error = read(&case).unwrap_err().0;
        assert!(error.contains(expected) && error.contains("'m'"), "{error}");
    }
}

#[test]
fn a_library_of_custom_operators_is_looked_for_beside_the_model() {
    let mut case = case();
    std::fs::write(case.folder.path().join("ops.so"), "").unwrap();
    case.config.model_operations = Some(ModelOperations {
        op_library_filename: vec!["ops.so".to_owned(), "/elsewhere/ops.so".to_owned()],
    });
    let found = read(&case).unwrap().custom_op_libraries;
    assert_eq!(found, [case.folder.path().join("ops.so"), "/elsewhere/ops.so".into()]);
}
