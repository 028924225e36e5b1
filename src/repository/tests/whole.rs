//! Checking whole repositories.

use super::*;

fn findings(fixture: &Fixture, inspect: &mut dyn Inspect) -> Vec<String> {
    let root = fixture.root().display().to_string() + "/";
    check(&[fixture.root().into()], &Agents::built_in(), &Arc::new(Options::default()), inspect)
        .iter()
        .map(|finding| finding.to_string().replace(&root, ""))
        .collect()
}

impl<F: FnMut(&ModelSource) -> Result<Option<ModelIo>, String>> Inspect for F {
    fn inspect(&mut self, source: &ModelSource) -> Result<Option<ModelIo>, String> {
        self(source)
    }
}

fn nothing(_: &ModelSource) -> Result<Option<ModelIo>, String> {
    Ok(None)
}

const TENSORS: &str = "max_batch_size: 4 input { name: 'x' data_type: TYPE_FP32 dims: 3 } \
                       output { name: 'y' data_type: TYPE_FP32 dims: 2 }";

fn ensemble(steps: &str) -> String {
    format!("platform: 'ensemble' {TENSORS} ensemble_scheduling {{ {steps} }}")
}

fn step(model: &str, input: (&str, &str), output: (&str, &str)) -> String {
    format!(
        "step {{ model_name: '{model}' model_version: -1 input_map {{ key: '{}' value: '{}' }} \
         output_map {{ key: '{}' value: '{}' }} }}",
        input.0, input.1, output.0, output.1
    )
}

#[test]
fn a_sound_repository_has_no_findings() {
    let fixture = onnx(TENSORS)
        .with("e/config.pbtxt", ensemble(&step("m", ("x", "x"), ("y", "y"))))
        .with("e/1/", "");
    let mut inspected = Vec::new();
    let found = findings(&fixture, &mut |source: &ModelSource| {
        inspected.push(source.name.to_string());
        Ok(Some(io(&[("x", &[-1, 3])], &[("y", &[-1, 2])])))
    });
    assert_eq!(found, [""; 0]);
    assert_eq!(inspected, ["m"]);
}

#[test]
fn every_model_gets_its_findings_with_their_places() {
    let fixture = Fixture::new()
        .with("a/config.pbtxt", "backend: 'onnxruntime'\nmax_batchsize: 4")
        .with(
            "b/config.pbtxt",
            "backend: 'onnxruntime'\nmax_batch_size: 4\ndynamic_batching {\n  \
             preferred_batch_size: [ 2, 8 ]\n}",
        )
        .with("b/1/model.onnx", "")
        .with(
            "c/config.pbtxt",
            "backend: 'onnxruntime' version_policy { all { } } model_warmup { \
             inputs [ { key: 'a' value { input_data_file: 'there' } }, { key: 'b' value { \
             input_data_file: 'absent' } } ] }",
        )
        .with("c/1/model.onnx", "")
        .with("c/2/", "")
        .with("c/03/", "")
        .with("c/warmup/there", "")
        .with("d/config.pbtxt", format!("backend: 'onnxruntime'\n{TENSORS}"))
        .with("d/1/model.onnx", "")
        .with("e/1/", "")
        .with("f/1/model.onnx", "");
    let found = findings(&fixture, &mut |source: &ModelSource| match &*source.name {
        "d" => Ok(Some(io(&[("x", &[-1, 5])], &[("y", &[-1, 2])]))),
        "f" => Err("the file is no model".into()),
        _ => Ok(None),
    });
    assert_eq!(
        found,
        [
            "a/config.pbtxt:2:1: error: field 'max_batchsize' not found for message \
             'inference.ModelConfig'",
            "b/config.pbtxt:4:30: error: dynamic batching preferred size must be <= max batch \
             size for b",
            "c: warning: ignore version directory '03' which contains leading zeros in its \
             directory name",
            "c/2/model.onnx: error: unable to find 'c/2/model.onnx' for model 'c'",
            "c/warmup/absent: error: no such file, which input_data_file of model 'c' names",
            "d/config.pbtxt:2:19: error: model 'd', tensor 'x': the model expects 2 dimensions \
             (shape [-1,5]) but the model configuration specifies 2 dimensions (an initial batch \
             dimension because max_batch_size > 0 followed by the explicit tensor shape, making \
             complete shape [-1,3])",
            "e: error: Invalid model name: Could not determine backend for model 'e' with no \
             backend in model configuration. Expected model name of the form \
             'model.<backend_name>'.",
            "f/1/model.onnx: error: the file is no model",
        ]
    );
}

#[test]
fn ensembles_are_held_against_their_models() {
    let model = |config: &str| onnx(TENSORS).with("e/config.pbtxt", config).with("e/1/", "");
    let cases = [
        (
            ensemble(&step("absent", ("x", "x"), ("y", "y"))),
            "ensemble e contains models that are not available or ambiguous: absent",
        ),
        (
            ensemble(&step("m", ("z", "x"), ("y", "y"))),
            "in ensemble e, ensemble tensor x is mapping to non-existing input z in model m",
        ),
        (
            ensemble(&step("m", ("x", "x"), ("z", "y"))),
            "in ensemble e, ensemble tensor y is mapped from non-existing output z in model m",
        ),
        (
            ensemble(&step("e", ("x", "x"), ("y", "y"))),
            "circular dependency between ensembles: e -> ... -> e -> e",
        ),
        (
            ensemble(&step("m", ("x", "x"), ("y", "y"))).replacen("TYPE_FP32", "TYPE_INT8", 1),
            "in ensemble e, ensemble tensor x: inconsistent data type: TYPE_INT8 is inferred from \
             model e while TYPE_FP32 is inferred from model m",
        ),
        (
            ensemble(&step("m", ("x", "x"), ("y", "y")).replace("-1", "7")),
            "ensemble 'e' depends on 'm' whose required version 7 is not loaded.",
        ),
    ];
    for (config, expected) in cases {
        let found = findings(&model(&config), &mut nothing);
        assert_eq!(
            found.first().map(String::as_str),
            Some(format!("e/config.pbtxt: error: {expected}").as_str())
        );
    }
}

#[test]
fn what_is_no_repository_is_a_finding() {
    let fixture = Fixture::new().with("file", "");
    let options = Arc::new(Options::default());
    for (path, part) in [("absent", "No such file"), ("file", "Not a directory")] {
        let found =
            check(&[fixture.root().join(path)], &Agents::built_in(), &options, &mut nothing);
        assert_eq!(found.len(), 1);
        assert!(
            found[0].severity == Severity::Error && found[0].message.contains(part),
            "{found:?}"
        );
    }
    let found = check(&[fixture.root().into()], &Agents::built_in(), &options, &mut nothing);
    assert_eq!((found.len(), found[0].severity), (1, Severity::Warning));
}
