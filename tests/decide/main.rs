//! `decide` held to its contract: by a table of every cell, by all short histories, and by long
//! histories at random.

mod enumeration;
mod laws;
mod properties;
mod dsl;
mod table;
