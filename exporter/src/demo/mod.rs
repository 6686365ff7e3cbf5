//! x
pub async fn demo(_: crate::config::Settings) -> anyhow::Result<()> { Ok(()) }
pub fn traffic(_: &std::path::Path) -> anyhow::Result<()> { Ok(()) }
