//! A machine of toys: a device of several levels that makes its child, as the proxies of virtio
//! devices do.

mod device_add;
mod lifecycle;
mod machine;
mod tree;
