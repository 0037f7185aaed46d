//! `decide` held to its contract: by a table of every cell, by all short histories, and by long
//! histories at random.

mod dsl;
mod enumeration;
mod laws;
mod properties;
mod table;
