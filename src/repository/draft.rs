use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    agreement, autocomplete, batching,
    definition::{self, Definition},
    error::{Error, Fault, Location},
    labels, layout, normalise,
    options::Options,
    platform,
    scheduling::Scheduling,
    source::{ModelIo, ModelSource, PlacementDevice},
    text::{self, Outline},
    validate, versions,
};
use crate::{
    inference::Signature,
    proto::{
        ModelConfig, model_config::SchedulingChoice,
        model_sequence_batching::initial_state::StateData, model_warmup::input::InputDataType,
    },
};

/// A file of a data folder that a configuration names.
pub(super) struct DataFile<'a> {
    pub field: &'static str,
    /// The path of the field, or of one around it.
    pub place: String,
    pub folder: &'static str,
    pub file: &'a String,
}

/// The files of data folders that a configuration names.
pub(super) fn data_files(config: &ModelConfig) -> impl Iterator<Item = DataFile<'_>> {
    let warmups = config.model_warmup.iter().enumerate();
    let inputs = warmups.flat_map(|(index, warmup)| {
        warmup.inputs.values().map(move |input| (format!("model_warmup[{index}].inputs"), input))
    });
    let warmup_files = inputs.filter_map(|(place, input)| match &input.input_data_type {
        Some(InputDataType::InputDataFile(file)) => {
            Some(DataFile { field: "input_data_file", place, folder: layout::WARMUP_FOLDER, file })
        }
        _ => None,
    });
    let states = match &config.scheduling_choice {
        Some(SchedulingChoice::SequenceBatching(batching)) => batching.state.as_slice(),
        _ => &[],
    };
    let initial = states.iter().enumerate().flat_map(|(index, state)| {
        let place = format!("sequence_batching.state[{index}].initial_state");
        state.initial_state.iter().map(move |initial| (place.clone(), initial))
    });
    let state_files = initial.filter_map(|(place, state)| match &state.state_data {
        Some(StateData::DataFile(file)) => {
            Some(DataFile { field: "data_file", place, folder: layout::INITIAL_STATE_FOLDER, file })
        }
        _ => None,
    });
    warmup_files.chain(state_files)
}

/// A model whose configuration is read and not yet complete.
#[derive(Debug)]
pub struct Draft {
    dir: PathBuf,
    config: ModelConfig,
    /// The file that the configuration came from, and where its fields stand in it.
    origin: Option<(PathBuf, Outline)>,
    versions: Vec<i64>,
    warnings: Vec<String>,
    options: Arc<Options>,
}

/// A configuration as somebody wrote it, of which only the format has been checked.
#[derive(Clone, Debug)]
pub struct Written {
    config: ModelConfig,
    /// The file that the configuration came from, and where its fields stand in it.
    origin: Option<(PathBuf, Outline)>,
    /// Whether it takes the place of the folder's.
    pub(super) is_given: bool,
}

impl Written {
    /// Reads the configuration of the model in `dir`. One that may be absent and is, is empty.
    ///
    /// # Errors
    /// It cannot be read or is not of the text format.
    pub fn read(dir: &Path, options: &Options) -> Result<Self, Error> {
        let path = layout::config_path(dir, options.config_name.as_deref());
        let is_absent = std::fs::symlink_metadata(&path)
            .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
        if is_absent && options.auto_complete {
            return Ok(Self { config: ModelConfig::default(), origin: None, is_given: false });
        }
        let parsed = text::parse(&path, &layout::read_text(&path)?)?;
        Ok(Self { config: parsed.config, origin: Some((path, parsed.outline)), is_given: false })
    }

    /// What it says.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Whether it is that of an ensemble.
    pub fn is_ensemble(&self) -> bool {
        let choice = &self.config.scheduling_choice;
        self.config.platform == platform::ENSEMBLE
            || matches!(choice, Some(SchedulingChoice::EnsembleScheduling(_)))
    }
}

impl From<ModelConfig> for Written {
    /// Takes a configuration that stands in no file, such as a load request gives.
    fn from(config: ModelConfig) -> Self {
        Self { config, origin: None, is_given: true }
    }
}

impl Draft {
    /// Reads the configuration of the model `name` in `dir`.
    ///
    /// # Errors
    /// The configuration cannot be read or breaks a rule; no version is there to serve.
    pub fn read(name: &str, dir: &Path, options: &Arc<Options>) -> Result<Self, Error> {
        Self::new(name, dir, Written::read(dir, options)?, options)
    }

    /// Takes the configuration of the model `name` in `dir` as `written`.
    ///
    /// # Errors
    /// It breaks a rule; no version is there to serve.
    pub fn new(
        name: &str,
        dir: &Path,
        written: Written,
        options: &Arc<Options>,
    ) -> Result<Self, Error> {
        let Written { config, origin, .. } = written;
        if !layout::is_model_name(name) {
            return Err(Error::BadModelName { name: name.to_owned() });
        }
        let folders = layout::version_folders(dir)?;
        let mut draft = Self {
            dir: dir.to_owned(),
            config,
            origin,
            versions: Vec::new(),
            warnings: Vec::new(),
            options: options.clone(),
        };
        if draft.config.name.is_empty() || options.rename {
            draft.config.name = name.to_owned();
        }
        draft.check_paths()?;
        let some_version = folders.versions.first().map(|version| dir.join(version.to_string()));
        platform::complete(&mut draft.config, some_version.as_deref())
            .map_err(|fault| draft.locate(fault))?;
        normalise::config(&mut draft.config);
        draft.validate()?;
        if draft.config.name != name {
            return Err(draft.locate(Fault::new(
                "name",
                format!(
                    "unexpected directory name '{name}' for model '{}', directory name must equal \
                     model name",
                    draft.config.name
                ),
            )));
        }
        let chosen = versions::select(&draft.config, &folders.versions);
        draft.versions = chosen.ok_or_else(|| Error::NoVersions {
            model: name.to_owned(),
            location: draft.location_of("version_policy"),
        })?;
        draft.warn_of_folders(&folders);
        Ok(draft)
    }

    /// The model's name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// The configuration as far as it is known.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The versions to serve, ascending.
    pub fn versions(&self) -> &[i64] {
        &self.versions
    }

    /// What is odd and does not keep the model from being served.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The name of the back end; `None` for an ensemble.
    pub fn backend_name(&self) -> Option<&str> {
        Some(self.config.backend.as_str()).filter(|name| !name.is_empty())
    }

    /// Notes what kind of program the back end is.
    pub fn set_runtime(&mut self, runtime: &str) {
        runtime.clone_into(&mut self.config.runtime);
    }

    /// What the back end is to [inspect](crate::backend::Backend::inspect): the latest version that
    /// is served. `None` for an ensemble.
    pub fn source_for_inspect(&self) -> Option<ModelSource> {
        let backend = self.backend_name()?;
        let version = *self.versions.last()?;
        let version_dir = self.dir.join(version.to_string());
        let name: Arc<str> = self.config.name.as_str().into();
        Some(ModelSource {
            name: name.clone(),
            version,
            model_dir: self.dir.clone(),
            model_path: definition::model_path(
                &self.config,
                version_dir.clone(),
                self.compute_capability().as_deref(),
            ),
            version_dir,
            config: Arc::new(self.config.clone()),
            signature: Arc::new(Signature {
                model: name,
                max_batch_size: 0,
                inputs: Vec::new(),
                outputs: Vec::new(),
            }),
            settings: self.options.settings(backend),
        })
    }

    /// Takes over what the model itself has completed: its tensors, and how its requests are batched
    /// and answered. Of all else a model has no say.
    pub fn take_completed(&mut self, completed: ModelConfig) {
        self.config.max_batch_size = completed.max_batch_size;
        self.config.input = completed.input;
        self.config.output = completed.output;
        self.config.scheduling_choice = completed.scheduling_choice;
        self.config.model_transaction_policy = completed.model_transaction_policy;
    }

    /// Completes the configuration from what the back end found in the model's file, if it looked
    /// and found anything, and makes of it what is served.
    ///
    /// # Errors
    /// The complete configuration breaks a rule or does not agree with the model's file, or a label
    /// file cannot be read.
    pub fn complete(mut self, io: Option<&ModelIo>) -> Result<Definition, Error> {
        if let Some(io) = io.filter(|_| self.options.auto_complete) {
            let default_max_batch_size =
                self.options.default_max_batch_size(&self.config.backend)?;
            autocomplete::complete(&mut self.config, io, default_max_batch_size)
                .map_err(|fault| self.locate(fault))?;
        }
        normalise::config(&mut self.config);
        normalise::instance_groups(&mut self.config, &self.options);
        validate::config(&self.config)
            .and_then(|()| validate::instances(&self.config, &self.options))
            .and_then(|()| validate::tensors(&self.config))
            .and_then(|()| io.map_or(Ok(()), |io| agreement::check(&self.config, io)))
            .map_err(|fault| self.locate(fault))?;
        let placements = definition::placements(&self.config);
        let compute_capability = placements.iter().find_map(|placement| match placement.device {
            PlacementDevice::Gpu(ordinal) => self.options.compute_capability(ordinal),
            _ => None,
        });
        let signature = definition::signature(&self.config).ok_or_else(|| {
            Error::invalid(format!("model '{}' has a tensor of unknown type", self.config.name))
        })?;
        let scheduling = Scheduling::new(&self.config).map_err(|fault| self.locate(fault))?;
        let allowed_batch_sizes =
            batching::allowed_sizes(&self.config).map_err(|fault| self.locate(fault))?;
        Ok(Definition {
            name: signature.model.clone(),
            labels: Arc::new(labels::read(&self.config, &self.dir)?),
            signature: Arc::new(signature),
            rate_limits: definition::rate_limits(&self.config),
            placements,
            scheduling,
            allowed_batch_sizes,
            settings: self.options.settings(&self.config.backend),
            compute_capability,
            dir: self.dir,
            versions: self.versions,
            config: Arc::new(self.config),
        })
    }

    fn validate(&self) -> Result<(), Error> {
        validate::config(&self.config)
            .and_then(|()| {
                if self.options.auto_complete { Ok(()) } else { validate::tensors(&self.config) }
            })
            .map_err(|fault| self.locate(fault))
    }

    /// No name in the configuration may lead out of the model's folder.
    fn check_paths(&self) -> Result<(), Error> {
        let config = &self.config;
        let plain = |field: &'static str, path| (field, field.to_owned(), path);
        let default = [plain("default_model_filename", &config.default_model_filename)];
        let by_capability =
            config.cc_model_filenames.values().map(|file| plain("cc_model_filenames", file));
        let labels = config.output.iter().enumerate().map(|(index, output)| {
            ("label_filename", format!("output[{index}].label_filename"), &output.label_filename)
        });
        let data = data_files(config).map(|data| (data.field, data.place, data.file));
        let all = default.into_iter().chain(by_capability).chain(labels).chain(data);
        match all.into_iter().find(|(_, _, path)| !layout::stays_inside(path)) {
            None => Ok(()),
            Some((field, place, path)) => Err(Error::PathEscapes {
                field,
                value: path.clone(),
                model: config.name.clone(),
                location: self.location_of(&place),
            }),
        }
    }

    fn warn_of_folders(&mut self, folders: &layout::VersionFolders) {
        for name in &folders.ignored {
            self.warnings.push(if name.starts_with('0') {
                format!(
                    "ignore version directory '{name}' which contains leading zeros in its \
                     directory name"
                )
            } else {
                format!(
                    "ignore version directory '{name}' which fails to convert to integral number"
                )
            });
        }
        for version in versions::absent(&self.config, &folders.versions) {
            self.warnings.push(format!(
                "version {version} is specified for model '{}', but the version directory is not \
                 present",
                self.config.name
            ));
        }
    }

    /// The compute capability of the first GPU, on which the latest version is looked at.
    fn compute_capability(&self) -> Option<String> {
        if self.config.cc_model_filenames.is_empty() {
            return None;
        }
        let first = self.options.supported_gpus().next()?;
        self.options.compute_capability(first)
    }

    /// Turns a broken rule into an error that points at the configuration's file.
    fn locate(&self, fault: Fault) -> Error {
        let location = self.location_of(&fault.field);
        Error::Invalid { message: fault.message, location }
    }

    fn location_of(&self, field: &str) -> Option<Location> {
        let (file, outline) = self.origin.as_ref()?;
        let (line, column) = outline.position(field)?;
        Some(Location { file: file.clone(), line, column })
    }
}
