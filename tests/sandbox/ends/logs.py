import logging, logging.handlers
logging.basicConfig(filename="log", level=logging.INFO)
logging.info("first")
buffered = logging.handlers.MemoryHandler(10, target=logging.FileHandler("buffered"))
logger = logging.getLogger("other")
logger.addHandler(buffered)
logger.warning("second")
