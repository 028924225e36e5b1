//! Where models' batches are copied to and run.
//!
//! This room knows bytes, places and times. It must not know models, tensors, requests, or who waits.

pub mod kernels;
