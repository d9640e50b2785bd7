def main(): print("doctor: to come")
if __name__ == "__main__": main()
