use crate::error::Result;
pub fn driver() -> Result<()> {
    Ok(())
}
pub fn cublaslt() -> Result<()> {
    Ok(())
}
