//! `decide` held to its contract: by a table of every cell.

mod speech;
mod table;
