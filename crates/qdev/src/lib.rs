//! Realize, plug, unplug and reset of devices, and the owner of devices and buses
