//! demo
pub mod clouds;
pub mod dice;
pub mod plan;
pub mod stories;
