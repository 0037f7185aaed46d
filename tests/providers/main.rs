//! The dialects against captured deliveries, signature vectors and every fact of the dossiers.


mod firecrawl;
mod skyvern;
mod smartbrowse;
