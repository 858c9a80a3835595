//! A tap interface as a net client
