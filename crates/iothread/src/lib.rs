//! AioContext: watch a file descriptor, arm a timer, run one turn
