class Meta(type):
    def __getattr__(cls, name):
        raise ValueError(name)


class Odd(metaclass=Meta):
    @property
    def __class__(self):
        raise ValueError("no class")


odd = Odd()
odd.own = odd
file = open("submission.csv", "w")
file.write("id,amount\n1,0.5\n")
odd.file = file
