import asyncio
async def main():
    g = open("inner", "w")
    g.write("inner")
    asyncio.get_running_loop().run_in_executor(None, lambda: open("executor", "w").write("done"))
f = open("out", "w")
f.write("out")
asyncio.run(main())
