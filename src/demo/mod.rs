//! demo
pub mod dice;
pub mod plan;
pub mod stories;
