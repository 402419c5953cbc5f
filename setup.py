from setuptools import setup

setup(
    script_name="setup.py",  # so that the wheel, whose root package is here, leaves it out
    cffi_modules=["native/build.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
