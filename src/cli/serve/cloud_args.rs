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

/// What is served on a port for a cloud.
pub struct Endpoint {
    pub what: &'static str,
    pub port: u16,
    pub cloud: Arc<Cloud>,
}

impl CloudArgs {
    /// What is served for clouds.
    ///
    /// # Errors
    /// The environment lacks what the cloud sets.
    pub fn endpoints(&self) -> Result<Vec<Endpoint>, CloudError> {
        let mut endpoints = Vec::new();
        if self.allow_sagemaker {
            let cloud = Arc::new(Cloud::sagemaker()?);
            endpoints.push(Endpoint { what: "SageMaker", port: self.sagemaker_port, cloud });
        }
        let is_vertex = || std::env::var("AIP_MODE").is_ok_and(|mode| mode == "PREDICTION");
        if self.allow_vertex_ai.unwrap_or_else(is_vertex) {
            let cloud = Arc::new(Cloud::vertex_ai(self.vertex_ai_default_model.clone())?);
            endpoints.push(Endpoint { what: "Vertex AI", port: self.vertex_ai_port, cloud });
        }
        Ok(endpoints)
    }
}
