use std::{ops::RangeInclusive, str::FromStr, sync::Arc};

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
    /// The ports that other endpoints may have beside SageMaker's, as <FIRST>-<LAST>
    #[arg(long, value_name = "PORTS")]
    sagemaker_safe_port_range: Option<Ports>,
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

/// `<first>-<last>`
#[derive(Clone, Debug)]
struct Ports(RangeInclusive<u16>);

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ends = text.split_once('-').map(|(first, last)| (first.parse(), last.parse()));
        match ends {
            Some((Ok(first), Ok(last))) if first <= last => Ok(Self(first..=last)),
            _ => Err(format!("expected <port>-<port>, got '{text}'")),
        }
    }
}

/// What is served on a port for a cloud.
pub struct Endpoint {
    pub what: &'static str,
    pub port: u16,
    pub cloud: Arc<Cloud>,
}

impl CloudArgs {
    /// Checks that those of `others`, each with what it is and whether it is served, have ports that
    /// SageMaker leaves to them.
    ///
    /// # Errors
    /// Names the one that has not.
    pub fn check_ports(&self, others: &[(&str, bool, u16)]) -> Result<(), String> {
        let Some(Ports(safe)) =
            self.sagemaker_safe_port_range.as_ref().filter(|_| self.allow_sagemaker)
        else {
            return Ok(());
        };
        match others.iter().find(|(_, is_served, port)| *is_served && !safe.contains(port)) {
            None => Ok(()),
            Some((what, _, port)) => Err(format!(
                "The server cannot listen to {what} requests at port {port}, allowed port range is [{}, \
                 {}]",
                safe.start(),
                safe.end()
            )),
        }
    }

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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        cloud: CloudArgs,
    }

    #[test]
    fn other_ports_are_in_sagemakers_range() {
        let check = |flags: &[&str]| {
            let args = CommandLine::parse_from(["nereid"].iter().chain(flags)).cloud;
            args.check_ports(&[("HTTP", true, 8000), ("gRPC", false, 1), ("metrics", true, 8002)])
        };
        let range = |range: &str| format!("--sagemaker-safe-port-range={range}");
        assert_eq!(check(&["--allow-sagemaker", &range("8000-8002")]), Ok(()));
        assert_eq!(check(&[&range("1-2")]), Ok(()));
        let refused = check(&["--allow-sagemaker", &range("8000-8001")]).unwrap_err();
        assert!(refused.contains("metrics requests at port 8002"), "{refused}");
        for malformed in ["1", "2-1", "a-b", "1-70000"] {
            assert!(malformed.parse::<Ports>().is_err(), "{malformed}");
        }
    }
}
