//! What `make test-loom` checks. Each file carries its own loom tests; this package only brings them
//! together, by their paths, and is empty without `--cfg loom`.
#![cfg(loom)]

#[path = "../../src/runtime/driver/uring/bell.rs"]
pub mod bell;
#[path = "../../src/memory/fault/table.rs"]
pub mod fault_table;
#[path = "../../src/memory/gather.rs"]
pub mod gather;
#[path = "../../ring/src/indices.rs"]
pub mod indices;
#[path = "../../src/runtime/mailbox.rs"]
pub mod mailbox;
