//! Parses the option strings that -netdev and -device take
