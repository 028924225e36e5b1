//! The names of an output's classes.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use super::{
    error::Error,
    layout::{read_text, stays_inside},
};
use crate::proto::ModelConfig;

/// The labels of each output that has any, by the output's name.
pub type Labels = BTreeMap<Arc<str>, Arc<[String]>>;

/// Reads the label file of every output that names one: a label a line.
pub(super) fn read(config: &ModelConfig, model_dir: &Path) -> Result<Labels, Error> {
    let labelled = config.output.iter().filter(|output| !output.label_filename.is_empty());
    labelled
        .map(|output| {
            if !stays_inside(&output.label_filename) {
                return Err(Error::PathEscapes {
                    field: "label_filename",
                    value: output.label_filename.clone(),
                    model: config.name.clone(),
                    // A label file of the configuration's has been looked at before: this is the model's.
                    location: None,
                });
            }
            let text = read_text(&model_dir.join(&output.label_filename))?;
            let labels: Arc<[String]> = text.lines().map(str::to_owned).collect();
            Ok((Arc::from(output.name.as_str()), labels))
        })
        .collect()
}
