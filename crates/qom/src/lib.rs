//! Types, classes, objects, properties and the tree that objects live in
