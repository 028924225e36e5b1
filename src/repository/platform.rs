//! Which back end runs a model, and which file holds it: derived from the configuration's
//! `backend`, `platform` and `default_model_filename` and from the files present, as Triton does.

use std::{fs, path::Path};

use super::error::Fault;
use crate::proto::ModelConfig;

/// The platform of ensembles, which have no back end.
pub(super) const ENSEMBLE: &str = "ensemble";
/// The platform of TensorRT plans, the only one with shape tensors and profiles.
pub(super) const TENSORRT_PLAN: &str = "tensorrt_plan";

const TENSORFLOW: &str = "tensorflow";

/// A way of storing a model that is recognised without being told the back end.
struct Format {
    backend: &'static str,
    /// What `platform` becomes when empty; empty where the back end has none.
    platform: &'static str,
    file: &'static str,
    stored_as: StoredAs,
}

enum StoredAs {
    File,
    Folder,
    Either,
}

/// In the order in which a folder with several of them is decided.
const FORMATS: [Format; 9] = [
    Format::new(TENSORFLOW, "tensorflow_graphdef", "model.graphdef", StoredAs::File),
    Format::new(TENSORFLOW, "tensorflow_savedmodel", "model.savedmodel", StoredAs::Folder),
    Format::new("tensorrt", TENSORRT_PLAN, "model.plan", StoredAs::File),
    Format::new("onnxruntime", "onnxruntime_onnx", "model.onnx", StoredAs::Either),
    Format::new("openvino", "", "model.xml", StoredAs::Either),
    Format::new("pytorch", "pytorch_libtorch", "model.pt", StoredAs::File),
    Format::new("pytorch", "torch_aoti", "model.pt2", StoredAs::File),
    Format::new("python", "", "model.py", StoredAs::Either),
    Format::new("cuda", "", "model.cu", StoredAs::File),
];

/// Other names of platforms.
const PLATFORM_ALIASES: [(&str, &str); 1] = [("libtorch", "pytorch_libtorch")];

impl Format {
    const fn new(
        backend: &'static str,
        platform: &'static str,
        file: &'static str,
        stored_as: StoredAs,
    ) -> Self {
        Self { backend, platform, file, stored_as }
    }

    fn has_platform(&self, platform: &str) -> bool {
        let alias = PLATFORM_ALIASES.iter().find(|(alias, _)| *alias == platform);
        !self.platform.is_empty() && self.platform == alias.map_or(platform, |(_, meant)| meant)
    }

    fn is_in(&self, version_dir: &Path) -> bool {
        fs::metadata(version_dir.join(self.file)).is_ok_and(|metadata| match self.stored_as {
            StoredAs::File => !metadata.is_dir(),
            StoredAs::Folder => metadata.is_dir(),
            StoredAs::Either => true,
        })
    }
}

/// Fills `backend`, `platform` and `default_model_filename` where empty. `version_dir` is a
/// version's folder to look into, if the model has one.
///
/// # Errors
/// Nothing says what the model is.
pub(super) fn complete(config: &mut ModelConfig, version_dir: Option<&Path>) -> Result<(), Fault> {
    if config.default_model_filename.is_empty()
        && let Some(format) = FORMATS
            .iter()
            .find(|format| format.backend == TENSORFLOW && format.has_platform(&config.platform))
    {
        // Whichever back end runs it, such as Python with a handler.
        config.default_model_filename = format.file.to_owned();
    }
    let found = find_format(config, version_dir);
    if let Some(format) = found {
        config.backend = format.backend.to_owned();
        if config.platform.is_empty() {
            config.platform = format.platform.to_owned();
        }
        if config.default_model_filename.is_empty() {
            config.default_model_filename = format.file.to_owned();
        }
        return Ok(());
    }
    if config.backend.is_empty()
        && config.platform.is_empty()
        && config.default_model_filename.is_empty()
    {
        let Some((_, backend)) = config.name.split_once('.') else {
            return Err(Fault::new(
                "",
                format!(
                    "Invalid model name: Could not determine backend for model '{}' with no \
                     backend in model configuration. Expected model name of the form \
                     'model.<backend_name>'.",
                    config.name
                ),
            ));
        };
        config.default_model_filename = format!("model.{backend}");
        config.backend = backend.to_owned();
    }
    Ok(())
}

fn find_format(config: &ModelConfig, version_dir: Option<&Path>) -> Option<&'static Format> {
    let (backend, platform) = (&config.backend, &config.platform);
    let of_backend =
        || FORMATS.iter().filter(move |format| backend.is_empty() || format.backend == *backend);
    if !platform.is_empty() {
        let by_platform = of_backend().find(|format| format.has_platform(platform));
        // A back end whose platform is unknown keeps it, to be refused by `check_pair`.
        return by_platform.or_else(|| {
            of_backend().find(|format| !backend.is_empty() && format.platform.is_empty())
        });
    }
    if !config.default_model_filename.is_empty() {
        let by_file = of_backend().find(|format| format.file == config.default_model_filename);
        return by_file.or_else(|| default_format(backend));
    }
    version_dir
        .and_then(|dir| of_backend().find(|format| format.is_in(dir)))
        .or_else(|| default_format(backend))
}

/// What a named back end runs when the files do not say; TensorFlow alone has two formats of equal
/// right, so it has no default.
fn default_format(backend: &str) -> Option<&'static Format> {
    FORMATS.iter().find(|format| format.backend == backend && backend != TENSORFLOW)
}

/// Whether `platform` and `backend` name one and the same kind of model.
///
/// # Errors
/// They contradict each other, or name none.
pub(super) fn check_pair(config: &ModelConfig) -> Result<(), Fault> {
    let ModelConfig { name, platform, backend, .. } = config;
    if backend.is_empty() {
        return if platform == ENSEMBLE {
            Ok(())
        } else {
            let message = format!("unexpected platform type '{platform}' for {name}");
            Err(Fault::new("platform", message))
        };
    }
    if platform == ENSEMBLE {
        let message = format!(
            "Ensemble model '{name}' must have platform type '{platform}' and empty backend type"
        );
        return Err(Fault::new("backend", message));
    }
    let mut known = FORMATS
        .iter()
        .filter(|format| format.backend == *backend && !format.platform.is_empty())
        .peekable();
    if known.peek().is_some() && !known.any(|format| format.has_platform(platform)) {
        let message =
            format!("unexpected 'platform' and 'backend' pair, got:{platform}, {backend}");
        return Err(Fault::new("platform", message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(
        backend: &str,
        platform: &str,
        file: &str,
        present: &[&str],
    ) -> Result<[String; 3], String> {
        let dir = tempfile::tempdir().unwrap();
        for name in present {
            match name.strip_suffix('/') {
                Some(folder) => fs::create_dir(dir.path().join(folder)).unwrap(),
                None => fs::write(dir.path().join(name), "").unwrap(),
            }
        }
        let mut config = ModelConfig {
            name: "m".into(),
            backend: backend.into(),
            platform: platform.into(),
            default_model_filename: file.into(),
            ..ModelConfig::default()
        };
        complete(&mut config, Some(dir.path())).map_err(|fault| fault.message)?;
        check_pair(&config).map_err(|fault| fault.message)?;
        Ok([config.backend, config.platform, config.default_model_filename])
    }

    #[test]
    fn the_back_end_is_derived_from_what_is_given_and_present() {
        type Case<'a> = (&'a str, &'a str, &'a str, &'a [&'a str], [&'a str; 3]);
        let cases: [Case<'_>; 23] = [
            ("", "", "", &["model.onnx"], ["onnxruntime", "onnxruntime_onnx", "model.onnx"]),
            ("", "", "", &["model.onnx/"], ["onnxruntime", "onnxruntime_onnx", "model.onnx"]),
            ("", "", "", &["model.pt"], ["pytorch", "pytorch_libtorch", "model.pt"]),
            ("", "", "", &["model.pt2"], ["pytorch", "torch_aoti", "model.pt2"]),
            ("", "", "", &["model.py"], ["python", "", "model.py"]),
            ("", "", "", &["model.cu"], ["cuda", "", "model.cu"]),
            ("cuda", "", "model.ptx", &["model.ptx"], ["cuda", "", "model.ptx"]),
            ("", "", "", &["model.plan"], ["tensorrt", "tensorrt_plan", "model.plan"]),
            ("", "", "", &["model.xml", "model.bin"], ["openvino", "", "model.xml"]),
            (
                "",
                "",
                "",
                &["model.savedmodel/"],
                ["tensorflow", "tensorflow_savedmodel", "model.savedmodel"],
            ),
            (
                "",
                "",
                "",
                &["model.graphdef"],
                ["tensorflow", "tensorflow_graphdef", "model.graphdef"],
            ),
            ("", "onnxruntime_onnx", "", &[], ["onnxruntime", "onnxruntime_onnx", "model.onnx"]),
            ("", "pytorch_libtorch", "m.pt", &[], ["pytorch", "pytorch_libtorch", "m.pt"]),
            ("", "libtorch", "", &[], ["pytorch", "libtorch", "model.pt"]),
            ("", "", "model.onnx", &[], ["onnxruntime", "onnxruntime_onnx", "model.onnx"]),
            ("onnxruntime", "", "", &[], ["onnxruntime", "onnxruntime_onnx", "model.onnx"]),
            ("onnxruntime", "", "a.onnx", &[], ["onnxruntime", "onnxruntime_onnx", "a.onnx"]),
            ("python", "", "", &["model.onnx"], ["python", "", "model.py"]),
            ("python", "mine", "", &[], ["python", "mine", "model.py"]),
            (
                "python",
                "tensorflow_savedmodel",
                "",
                &["model.py"],
                ["python", "tensorflow_savedmodel", "model.savedmodel"],
            ),
            (
                "python",
                "tensorflow_graphdef",
                "own.py",
                &[],
                ["python", "tensorflow_graphdef", "own.py"],
            ),
            ("identity", "", "", &["model.onnx"], ["identity", "", ""]),
            ("", "ensemble", "", &[], ["", "ensemble", ""]),
        ];
        for (backend, platform, file, present, expected) in cases {
            assert_eq!(
                completed(backend, platform, file, present),
                Ok(expected.map(str::to_owned)),
                "{backend:?} {platform:?} {file:?} {present:?}"
            );
        }
    }

    #[test]
    fn contradictions_and_unknowns_are_refused() {
        let cases: [(&str, &str, &[&str], &str); 6] = [
            ("", "caffe", &[], "unexpected platform type 'caffe' for m"),
            (
                "onnxruntime",
                "tensorrt_plan",
                &[],
                "unexpected 'platform' and 'backend' pair, got:tensorrt_plan, onnxruntime",
            ),
            ("tensorflow", "", &[], "unexpected 'platform' and 'backend' pair, got:, tensorflow"),
            (
                "python",
                "ensemble",
                &[],
                "Ensemble model 'm' must have platform type 'ensemble' and empty backend type",
            ),
            (
                "",
                "",
                &["model.savedmodel"],
                "Invalid model name: Could not determine backend for model 'm' with no backend in \
                 model configuration. Expected model name of the form 'model.<backend_name>'.",
            ),
            (
                "",
                "",
                &[],
                "Invalid model name: Could not determine backend for model 'm' with no backend in \
                 model configuration. Expected model name of the form 'model.<backend_name>'.",
            ),
        ];
        for (backend, platform, present, expected) in cases {
            assert_eq!(completed(backend, platform, "", present).unwrap_err(), expected);
        }
    }

    #[test]
    fn a_model_named_for_its_back_end_needs_no_more() {
        let mut config = ModelConfig { name: "simple.identity".into(), ..ModelConfig::default() };
        complete(&mut config, None).unwrap();
        assert_eq!(
            (config.backend.as_str(), config.default_model_filename.as_str()),
            ("identity", "model.identity")
        );
    }
}
