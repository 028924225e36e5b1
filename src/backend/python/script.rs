use std::{
    borrow::Cow,
    path::{Path, PathBuf},
};

use crate::backend::{BackendError, ModelSource};

/// The name of the file that is run.
pub const FILE: &str = "model.py";
/// The folder, in that of the back end `python`, whose folders are named for platforms.
const HANDLERS: &str = "python/platform_handlers";

/// The script of the back end `name`, if it is one: `{directory}/{name}/model.py`.
pub fn of_backend(directory: &Path, name: &str) -> Option<PathBuf> {
    in_folder(directory, name).filter(|script| script.is_file())
}

/// `{directory}/{name}/model.py`, if `name` is one folder's.
fn in_folder(directory: &Path, name: &str) -> Option<PathBuf> {
    let is_name = Path::new(name).file_name().is_some_and(|file| file == name);
    is_name.then(|| directory.join(name).join(FILE))
}

/// Which files the models of a back end run.
pub enum Scripts {
    /// All the same: the back end is that script.
    Shared(PathBuf),
    /// Each its own, except those whose `platform` has a handler.
    Own {
        /// Where the handlers lie, each in a folder of its platform's name.
        handlers: Option<PathBuf>,
    },
}

/// The file that one model runs.
pub struct Script<'a> {
    /// Where it is.
    pub path: Cow<'a, Path>,
    /// Whether it is the model's own.
    pub is_own: bool,
}

impl Scripts {
    /// Of models of the back end `python`, whose back ends lie in `directory`.
    pub fn of_python(directory: Option<&Path>) -> Self {
        Self::Own { handlers: directory.map(|directory| directory.join(HANDLERS)) }
    }

    /// What this model runs; whether it is there is another question. A handler is chosen before a
    /// file of the model's own, which may be there for the handler, as in Triton 23.07.
    pub fn of_model<'a>(&'a self, source: &'a ModelSource) -> Script<'a> {
        let shared = match self {
            Self::Shared(script) => Some(Cow::Borrowed(script.as_path())),
            Self::Own { .. } => self.handler(source).filter(|it| it.is_file()).map(Cow::Owned),
        };
        let is_own = shared.is_none();
        Script { path: shared.unwrap_or(Cow::Borrowed(&source.model_path)), is_own }
    }

    /// Where the handler of the model's platform is, if there is one.
    pub fn handler(&self, source: &ModelSource) -> Option<PathBuf> {
        match self {
            Self::Shared(_) => None,
            Self::Own { handlers } => in_folder(handlers.as_deref()?, &source.config.platform),
        }
    }

    /// The file that this model runs.
    ///
    /// # Errors
    /// There is none.
    pub fn find<'a>(&'a self, source: &'a ModelSource) -> Result<Script<'a>, BackendError> {
        let script = self.of_model(source);
        if !script.is_own || script.path.exists() {
            return Ok(script);
        }
        let own = script.path.display();
        Err(BackendError(match self.handler(source) {
            Some(handler) => {
                let handler = handler.display();
                format!("Python model file not found in neither '{handler}' nor '{own}'")
            }
            None => format!("Python model file not found in '{own}'"),
        }))
    }
}
