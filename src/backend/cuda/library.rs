use crate::error::Result;
pub fn driver() -> Result<()> {
    Ok(())
}
pub fn cublaslt() -> Result<()> {
    Ok(())
}
pub fn probe() -> Result<()> {
    Err(crate::error::Error::system("x"))
}
