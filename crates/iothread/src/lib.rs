//! `AioContext`: watch a file descriptor, arm a timer on a given clock, run one turn.

mod context;

pub use context::{
    AioContext, BottomHalf, FdHandler, Interest, Readiness, TimerHandler, TimerId, WatchId,
    WatchedFd,
};
