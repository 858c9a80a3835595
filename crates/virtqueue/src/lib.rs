//! The device's half of a virtqueue.

mod config;

pub use config::{QueueConfig, QueueIndex, QueueState};
