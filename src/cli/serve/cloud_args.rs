use std::sync::Arc;

use clap::Args;

use crate::{
    cli::flags::switch,
    ingress::http::{Cloud, CloudError},
};

/// tritonserver's flags about the endpoints of SageMaker and Vertex AI.
#[derive(Args, Clone, Debug)]
pub struct CloudArgs {
    /// Whether SageMaker's endpoints are served
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          default_value = "false", value_parser = switch(), action = clap::ArgAction::Set)]
    allow_sagemaker: bool,
    /// The port for SageMaker; 0 lets the system choose
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    sagemaker_port: u16,
    /// Whether Vertex AI's endpoints are served [default: whether $AIP_MODE is PREDICTION]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          value_parser = switch(), action = clap::ArgAction::Set)]
    allow_vertex_ai: Option<bool>,
    /// The port for Vertex AI; 0 lets the system choose
    #[arg(long, value_name = "PORT", env = "AIP_HTTP_PORT", default_value_t = 8080)]
    vertex_ai_port: u16,
    /// The model of Vertex AI's requests [default: the only one there is]
    #[arg(long, value_name = "NAME")]
    vertex_ai_default_model: Option<String>,
}

impl CloudArgs {
    /// What is served for clouds: what it is called, on which port, and what is answered there.
    ///
    /// # Errors
    /// The environment lacks what the cloud sets.
    pub fn endpoints(&self) -> Result<Vec<(&'static str, u16, Arc<Cloud>)>, CloudError> {
        let mut endpoints = Vec::new();
        if self.allow_sagemaker {
            endpoints.push(("SageMaker", self.sagemaker_port, Arc::new(Cloud::sagemaker()?)));
        }
        let is_vertex = || std::env::var("AIP_MODE").is_ok_and(|mode| mode == "PREDICTION");
        if self.allow_vertex_ai.unwrap_or_else(is_vertex) {
            let cloud = Cloud::vertex_ai(self.vertex_ai_default_model.clone())?;
            endpoints.push(("Vertex AI", self.vertex_ai_port, Arc::new(cloud)));
        }
        Ok(endpoints)
    }
}
