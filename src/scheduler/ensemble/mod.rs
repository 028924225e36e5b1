//! How a request goes through an ensemble: which step may begin with what, and what the answer is.
//!
//! [`EnsemblePlan`] is made once, when the ensemble is loaded; an [`EnsembleRun`] is one request's way
//! through it, told what the steps answered. It passes tensors on and never looks into them: they are
//! a type parameter. It calls nothing and knows no models beyond the names of their tensors.

mod plan;
mod run;
#[cfg(test)]
mod tests;

pub use plan::{EnsemblePlan, LastStep, PlanStep, StepInput, Takers, TensorIndex};
pub use run::{Call, EnsembleRun, Progress, ResponseOutputs, StepInputs};
