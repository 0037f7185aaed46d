//! The dialects against captured deliveries, signature vectors and every fact of the dossiers.

mod browser_use;
mod firecrawl;
mod skyvern;
mod smartbrowse;
